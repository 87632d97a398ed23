"""The MuJoCo scene: one compiled model for all worlds. A reset writes its fields, which is much faster than compiling."""

from __future__ import annotations

from math import cos, sin, tan

import mujoco
import numpy as np

from anyvla.simulation.textures import SIZE, box_texture, floor_texture, sky_texture
from anyvla.simulation.world import BOX_STYLES, FLOORS, ROBOT_RADIUS, TARGETS, Box, Looks, World

TIME_STEP = 0.01  # s
LAG = 0.15  # s: time constant with which the base follows a commanded velocity
MASS, INERTIA = 20.0, 0.5  # kg, kg m^2
MAX_BOXES = 2
SKY_SIZE = 32
CAMERA_BACK = 0.15  # m behind the base's centre, so that a box beside the robot is still partly seen
_AWAY = (-60.0, 0.0, -20.0)  # where the parts that a world doesn't use are kept: below the floor, never seen

# Every target stands on the floor around the origin, at most 0.2 m from its axis. "paint" takes the world's colour.
_TARGET_GEOMS = {
    "bottle": """
        <geom class="paint" type="cylinder" size=".15 .23" pos="0 0 .23"/>
        <geom class="paint" type="ellipsoid" size=".15 .15 .12" pos="0 0 .46"/>
        <geom class="paint" type="cylinder" size=".055 .09" pos="0 0 .62"/>
        <geom type="cylinder" size=".068 .035" pos="0 0 .72" rgba=".97 .97 .97 1"/>
        <geom type="cylinder" size=".154 .08" pos="0 0 .27" rgba=".97 .97 .94 1"/>""",
    "ball": """
        <geom class="paint" type="sphere" size=".2" pos="0 0 .2"/>
        <geom type="cylinder" size=".206 .02" pos="0 0 .2" euler=".5 .3 0" rgba=".97 .97 .97 1"/>
        <geom type="cylinder" size=".206 .02" pos="0 0 .2" euler="1.8 .4 0" rgba=".97 .97 .97 1"/>""",
    "can": """
        <geom class="paint" type="cylinder" size=".17 .25" pos="0 0 .25"/>
        <geom type="cylinder" size=".155 .015" pos="0 0 .51" rgba=".8 .82 .84 1"/>
        <geom type="cylinder" size=".173 .03" pos="0 0 .08" rgba=".95 .95 .95 1"/>
        <geom type="cylinder" size=".173 .03" pos="0 0 .42" rgba=".95 .95 .95 1"/>""",
    "cup": """
        <geom class="paint" type="cylinder" size=".15 .21" pos="0 0 .21"/>
        <geom type="cylinder" size=".13 .005" pos="0 0 .42" rgba=".2 .12 .08 1"/>
        <geom class="paint" type="capsule" size=".022" fromto=".13 0 .35 .178 0 .33"/>
        <geom class="paint" type="capsule" size=".022" fromto=".178 0 .33 .178 0 .14"/>
        <geom class="paint" type="capsule" size=".022" fromto=".178 0 .14 .13 0 .1"/>""",
    "plant": """
        <geom class="paint" type="cylinder" size=".15 .12" pos="0 0 .12"/>
        <geom class="paint" type="cylinder" size=".17 .03" pos="0 0 .25"/>
        <geom type="ellipsoid" size=".12 .12 .2" pos="0 0 .46" rgba=".16 .5 .18 1"/>
        <geom type="ellipsoid" size=".06 .06 .17" pos=".09 .05 .44" euler="-.3 .5 0" rgba=".24 .64 .22 1"/>
        <geom type="ellipsoid" size=".06 .06 .17" pos="-.08 .07 .44" euler="-.4 -.5 0" rgba=".2 .58 .2 1"/>
        <geom type="ellipsoid" size=".06 .06 .17" pos="0 -.1 .44" euler=".5 0 0" rgba=".27 .66 .26 1"/>""",
    "chair": """
        <geom class="paint" type="box" size=".17 .17 .03" pos="0 0 .36"/>
        <geom class="paint" type="box" size=".025 .17 .17" pos="-.145 0 .56"/>
        <geom type="box" size=".022 .022 .165" pos=".14 .14 .165" rgba=".25 .2 .16 1"/>
        <geom type="box" size=".022 .022 .165" pos=".14 -.14 .165" rgba=".25 .2 .16 1"/>
        <geom type="box" size=".022 .022 .165" pos="-.14 .14 .165" rgba=".25 .2 .16 1"/>
        <geom type="box" size=".022 .022 .165" pos="-.14 -.14 .165" rgba=".25 .2 .16 1"/>""",
}

# Soft shadows painted on the floor: a shadow map takes longer than all the rest of a small picture. Three thin layers of
# increasing size blur the edge.
_SHADE_LAYERS = (-0.01, 0.025, 0.06)  # m beyond the object's outline
_SHADE_SHIFT = 0.05  # m away from the sun


def _shade(name: str, kind: str, radius: float) -> str:
    layers = "".join(
        f'<geom class="shade" type="{kind}" size="{radius + grow} {radius + grow if kind == "box" else 0.0005} .0005"'
        f' pos="0 0 {0.001 + 0.001 * k}"/>'
        for k, grow in enumerate(_SHADE_LAYERS)
    )
    return f'<body name="{name}" pos="{_AWAY[0]} {_AWAY[1]} {_AWAY[2]}">{layers}</body>'


def _xml() -> str:
    away = " ".join(map(str, _AWAY))
    floors = "".join(
        f'<texture name="{n}" type="2d" builtin="flat" width="{SIZE}" height="{SIZE}"/>'
        f'<material name="{n}" texture="{n}" texrepeat=".5 .5" texuniform="true" specular=".1" shininess=".1"/>'
        for n in FLOORS
    )
    styles = "".join(
        f'<texture name="{n}" type="cube" builtin="flat" width="{SIZE}" height="{SIZE}"/>'
        f'<material name="{n}" texture="{n}" specular=".1" shininess=".1"/>'
        for n in BOX_STYLES
    )
    boxes = "".join(
        f'<body name="box{i}" pos="{away}"><geom name="box{i}" type="box" size=".1 .1 .1" material="plain"/></body>'
        for i in range(MAX_BOXES)
    )
    targets = "".join(f'<body name="{n}" pos="{away}">{_TARGET_GEOMS[n]}</body>' for n in TARGETS)
    shades = "".join(_shade(f"shade{i}", "box", 0.1) for i in range(MAX_BOXES)) + _shade("shade", "cylinder", 0.16).replace(
        away, "0 0 0"
    )
    under_robot = _shade("shade_robot", "cylinder", ROBOT_RADIUS - 0.02).replace(away, "0 0 0")
    gain, turn_gain = MASS / LAG, INERTIA / LAG
    return f"""
<mujoco model="boxnav">
  <compiler angle="radian"/>
  <option timestep="{TIME_STEP}" integrator="implicitfast" gravity="0 0 0"/>
  <statistic center="2.5 0 0" extent="5"/>
  <visual>
    <quality shadowsize="0" offsamples="0" numslices="20" numstacks="10"/>
    <map znear=".01" zfar="12" fogstart="1.2" fogend="10"/>
    <headlight ambient=".3 .3 .3" diffuse=".15 .15 .15" specular="0 0 0"/>
  </visual>
  <default>
    <geom contype="0" conaffinity="2"/>
    <default class="body"><geom contype="2" conaffinity="0"/></default>
    <default class="decor"><geom contype="0" conaffinity="0"/></default>
    <default class="shade"><geom contype="0" conaffinity="0" rgba="0 0 0 .16"/></default>
    <default class="paint"><geom rgba="1 0 0 1"/></default>
  </default>
  <asset>
    <texture name="sky" type="skybox" builtin="flat" width="{SKY_SIZE}" height="{6 * SKY_SIZE}"/>
    {floors}{styles}
  </asset>
  <worldbody>
    <light name="sun" directional="true" castshadow="false" pos="2 0 6" dir="0 0 -1" specular=".2 .2 .2"/>
    <geom name="floor" class="decor" type="plane" size="0 0 1" material="checker"/>
    <body name="robot">
      <inertial pos="0 0 .1" mass="{MASS}" diaginertia="{INERTIA} {INERTIA} {INERTIA}"/>
      <joint name="x" type="slide" axis="1 0 0"/>
      <joint name="y" type="slide" axis="0 1 0"/>
      <joint name="yaw" type="hinge" axis="0 0 1"/>
      <geom name="base" class="body" type="cylinder" size="{ROBOT_RADIUS} .07" pos="0 0 .1" rgba=".2 .22 .26 1"/>
      <geom class="decor" type="cylinder" size=".17 .01" pos="0 0 .18" rgba=".92 .93 .95 1"/>
      <geom class="decor" type="box" size=".05 .02 .005" pos=".1 0 .192" rgba=".1 .55 .9 1"/>
      <geom class="decor" type="cylinder" size=".02 .17" pos="-.17 0 .35" rgba=".6 .62 .66 1"/>
      <geom class="decor" type="cylinder" size=".1 .03" pos="0 0 .03" rgba=".1 .1 .1 1"/>
      <geom name="camera" class="decor" type="box" size=".02 .05 .022" pos="-.18 0 .54" rgba=".15 .16 .18 1"/>
      <site name="base"/>
      {under_robot}
      <camera name="forward" pos="{-CAMERA_BACK} 0 .5" xyaxes="0 -1 0 .2 0 1"/>
    </body>
    {boxes}
    {targets}
    {shades}
    <camera name="overview" pos="-1.5 -1.9 2.4" xyaxes=".5 -.87 0 .46 .27 .85" fovy="44"/>
  </worldbody>
  <actuator>
    <velocity site="base" gear="1 0 0 0 0 0" kv="{gain}"/>
    <velocity site="base" gear="0 1 0 0 0 0" kv="{gain}"/>
    <velocity site="base" gear="0 0 0 0 0 1" kv="{turn_gain}"/>
  </actuator>
</mujoco>"""


class Scene:
    """The compiled model with its state, showing one world at a time.

    The base is holonomic: a velocity servo per axis of its own frame, m dv/dt = (m / LAG) (command - v), makes a
    first-order lag. The robot touches boxes and targets only.
    """

    def __init__(self, image_size: tuple[int, int]) -> None:
        """``image_size`` (height, width) of the forward camera fixes its vertical field of view."""
        self.image_size = image_size
        self.model = mujoco.MjModel.from_xml_string(_xml())
        self.data = mujoco.MjData(self.model)
        self._robot = self.model.body("robot").id
        self._start = np.zeros(3)
        for name in FLOORS:
            self._write_texture(name, floor_texture(name))
        for name in BOX_STYLES:
            self._write_texture(name, np.tile(box_texture(name), (6, 1, 1)))
        self._painted = {
            name: [g for g in _geoms(self.model, name) if tuple(self.model.geom_rgba[g]) == (1.0, 0.0, 0.0, 1.0)]
            for name in TARGETS
        }

    def show(self, world: World) -> None:
        """Put ``world`` into the model and the robot at its start, at rest. Writes every field that any world changes."""
        model = self.model
        shift = _SHADE_SHIFT * np.array(world.looks.sun_direction[:2])
        for i in range(MAX_BOXES):
            self._place_box(i, world.boxes[i] if i < len(world.boxes) else None, shift)
        for name in TARGETS:
            body = model.body(name).id
            if name == world.target:
                model.body_pos[body] = world.target_x, world.target_y, 0.0
                model.body_quat[body] = _turned(world.target_yaw)
                model.geom_rgba[self._painted[name], :3] = world.target_colour
            else:
                model.body_pos[body] = _AWAY
        model.body_pos[model.body("shade").id, :2] = np.array([world.target_x, world.target_y]) + shift
        self._show_looks(world.looks)
        mujoco.mj_resetData(model, self.data)
        self.data.qpos[:] = world.start
        mujoco.mj_forward(model, self.data)

    def step(self, command: np.ndarray, force: np.ndarray) -> bool:
        """One time step.

        Args:
            command: (3,) velocities in the robot's frame: x m/s, y m/s, turn rad/s.
            force: (2,) N in the world's frame, pushing the base's centre.

        Returns:
            True if the robot touches something.
        """
        self.data.ctrl[:] = command
        self.data.xfrc_applied[self._robot, :2] = force
        mujoco.mj_step(self.model, self.data)
        return bool(self.data.ncon > 0)

    @property
    def pose(self) -> tuple[float, float, float]:
        """x, y, yaw of the robot in the world."""
        x, y, yaw = self.data.qpos
        return float(x), float(y), float(yaw)

    @property
    def velocity(self) -> np.ndarray:
        """(3,) float32 measured velocities in the robot's frame: x m/s, y m/s, turn rad/s."""
        vx, vy, turn = self.data.qvel
        c, s = cos(self.data.qpos[2]), sin(self.data.qpos[2])
        return np.array([c * vx + s * vy, c * vy - s * vx, turn], dtype=np.float32)

    def _place_box(self, i: int, box: Box | None, shift: np.ndarray) -> None:
        model = self.model
        body, geom, shade = model.body(f"box{i}").id, model.geom(f"box{i}").id, model.body(f"shade{i}").id
        if box is None:
            model.body_pos[[body, shade]] = _AWAY
            return
        model.body_pos[shade] = box.x + shift[0], box.y + shift[1], 0.0
        model.body_quat[shade] = _turned(box.yaw)
        for layer, grow in zip(_geoms(model, f"shade{i}"), _SHADE_LAYERS, strict=True):
            model.geom_size[layer, :2] = box.half[0] + grow, box.half[1] + grow
        model.body_pos[body] = box.x, box.y, box.half[2]
        model.body_quat[body] = _turned(box.yaw)
        model.geom_size[geom] = box.half
        # what collision detection and culling derive from the size at compile time
        model.geom_rbound[geom] = np.linalg.norm(box.half)
        model.geom_aabb[geom, 3:] = box.half
        model.bvh_aabb[model.body_bvhadr[body], 3:] = box.half
        model.geom_matid[geom] = model.material(box.style).id
        model.geom_rgba[geom, :3] = box.colour

    def _show_looks(self, looks: Looks) -> None:
        model = self.model
        floor = model.geom("floor").id
        model.geom_matid[floor] = model.material(looks.floor).id
        model.geom_rgba[floor, :3] = looks.floor_tint
        self._write_texture("sky", sky_texture(looks.zenith, looks.horizon, SKY_SIZE))
        light = model.light("sun").id
        model.light_dir[light] = looks.sun_direction
        model.light_diffuse[light] = looks.sun
        model.vis.headlight.ambient = looks.ambient
        height, width = self.image_size
        camera = model.camera("forward").id
        model.cam_pos[camera, 2] = looks.camera_height
        # the horizontal field of view is what the task needs; the vertical one follows from the picture's shape
        model.cam_fovy[camera] = np.degrees(2 * np.arctan(tan(looks.camera_fov / 2) * height / width))
        model.cam_quat[camera] = _looking_down(looks.camera_pitch)

    def _write_texture(self, name: str, pixels: np.ndarray) -> None:
        texture = self.model.texture(name).id
        start = self.model.tex_adr[texture]
        self.model.tex_data[start : start + pixels.size] = pixels.ravel()


def _geoms(model: mujoco.MjModel, body: str) -> range:
    first = int(model.body(body).geomadr[0])
    return range(first, first + int(model.body(body).geomnum[0]))


def _turned(yaw: float) -> tuple[float, float, float, float]:
    """The quaternion of a turn about z."""
    return cos(yaw / 2), 0.0, 0.0, sin(yaw / 2)


def _looking_down(pitch: float) -> np.ndarray:
    """The quaternion of a camera that looks along +x, ``pitch`` radians below the horizon (its own view is along -z)."""
    axes = np.array([[0.0, sin(pitch), -cos(pitch)], [-1.0, 0.0, 0.0], [0.0, cos(pitch), sin(pitch)]])
    quaternion = np.zeros(4)
    mujoco.mju_mat2Quat(quaternion, axes.ravel())
    return quaternion
