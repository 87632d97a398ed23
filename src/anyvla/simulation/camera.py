"""Pictures of a scene through MuJoCo's own OpenGL renderer."""

from __future__ import annotations

import mujoco
import numpy as np

from anyvla.simulation.gl import gl_context
from anyvla.simulation.scene import Scene

SMALL = 640  # pixels along the longer side, up to which pictures are smoothed


class Cameras:
    """Renders the named cameras of one scene in any size; owns an OpenGL context until ``close``.

    Raises:
        SimulationError: no OpenGL back end works here.
    """

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._gl = gl_context(16, 16)
        self._context = mujoco.MjrContext(scene.model, mujoco.mjtFontScale.mjFONTSCALE_50)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._picture = mujoco.MjvScene(scene.model, maxgeom=200)
        self._option = mujoco.MjvOption()
        self._sky = scene.model.texture("sky").id

    def update(self) -> None:
        """After ``Scene.show``: hand the new sky to the graphics library."""
        self._gl.make_current()
        mujoco.mjr_uploadTexture(self._scene.model, self._context, self._sky)

    def render(self, camera: str, size: tuple[int, int]) -> np.ndarray:
        """(height, width, 3) uint8 picture by the camera of that name.

        Small pictures are drawn twice as large and averaged: smooth edges, and a recording made large and scaled down looks
        the same.
        """
        scale = 2 if max(size) <= SMALL else 1
        height, width = scale * size[0], scale * size[1]
        self._gl.make_current()
        if height > self._context.offHeight or width > self._context.offWidth:
            mujoco.mjr_resizeOffscreen(max(width, self._context.offWidth), max(height, self._context.offHeight), self._context)
        model = self._scene.model
        view = fixed_view(model, camera)
        # updateScene sorts translucent parts by where the camera was last: without this a picture depends on the one before
        mujoco.mjv_updateCamera(model, self._scene.data, view, self._picture)
        mujoco.mjv_updateScene(model, self._scene.data, self._option, None, view, mujoco.mjtCatBit.mjCAT_ALL, self._picture)
        return draw(self._picture, self._context, size, scale)

    def close(self) -> None:
        """Free the OpenGL context. Calling it again does nothing."""
        if self._context is not None:
            self._gl.make_current()
            self._context.free()
            self._gl.free()
            self._context = None


def fixed_view(model: mujoco.MjModel, camera: str) -> mujoco.MjvCamera:
    """The view of the camera of that name in ``model``."""
    view = mujoco.MjvCamera()
    view.type = mujoco.mjtCamera.mjCAMERA_FIXED
    view.fixedcamid = model.camera(camera).id
    return view


def draw(picture: mujoco.MjvScene, context: mujoco.MjrContext, size: tuple[int, int], scale: int) -> np.ndarray:
    """(height, width, 3) uint8 of ``size``, drawn ``scale`` (1 or 2) times as large and averaged."""
    height, width = scale * size[0], scale * size[1]
    rectangle = mujoco.MjrRect(0, 0, width, height)
    mujoco.mjr_render(rectangle, picture, context)
    image = np.empty((height, width, 3), np.uint8)
    mujoco.mjr_readPixels(image, None, rectangle, context)
    image = image[::-1]  # OpenGL's first row is the lowest
    if scale == 2:
        rows = image[0::2].astype(np.uint16) + image[1::2]
        return ((rows[:, 0::2] + rows[:, 1::2] + 2) // 4).astype(np.uint8)
    return np.ascontiguousarray(image)
