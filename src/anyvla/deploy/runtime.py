"""Drives an exported policy: onnxruntime, numpy and the transforms; of PyTorch and of the model's code nothing is needed.

    policy = DeployedPolicy.load("robot/nav")
    policy.reset("Pass the box on the left and stop in front of the bottle.")
    action = policy.act({"front": image})

Everything around the graphs is that of ``Policy``: sessions, chunk execution, the safety filter.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from anyvla.config.tree import ExecutionConfig, PolicyConfig
from anyvla.data.transforms import Transforms
from anyvla.deploy.tokens import PromptLayout, input_tokens
from anyvla.errors import CheckpointError, DataError, MissingExtraError
from anyvla.policies.session import PolicyBase, Session

Graph = Callable[[dict[str, np.ndarray]], np.ndarray]  # inputs by name -> the one output


class DeployedPolicy(PolicyBase):
    """Two graphs with everything around them that turns images into robot actions.

    Attributes:
        folder: where it was loaded from.
    """

    def __init__(
        self,
        folder: Path,
        backbone: Graph,
        head: Graph,
        transforms: Transforms,
        config: PolicyConfig,
        layout: PromptLayout,
        window: tuple[int, int, int],
        tokenizer: str,
    ) -> None:
        """``window``: (H, Q, D) of the features that the head looks at. ``tokenizer``: SHA-256 of its file."""
        super().__init__(transforms, config)
        self.folder = folder
        self._backbone, self._head = backbone, head
        self._layout = layout
        self._window = window
        self._tokenizer = _tokenizer(folder / "tokenizer.json", tokenizer)
        self._tokens: dict[str, np.ndarray] = {}

    @classmethod
    def load(
        cls, folder: str | Path, *, execution: ExecutionConfig | None = None, threads: int | None = None
    ) -> DeployedPolicy:
        """Load what ``anyvla export --format onnx`` wrote.

        Args:
            execution: instead of its own. threads: of onnxruntime, for one operator; as many as there are cores if None.

        Raises:
            CheckpointError: the folder is none, or damaged. ConfigError: ``execution`` does not fit the policy.
            MissingExtraError: onnxruntime is not installed.
        """
        folder = Path(folder)
        settings = _settings(folder)
        if settings["format"] != "onnx":
            raise CheckpointError(
                f"{folder} holds programs of PyTorch, for torch.export.load and what builds on it; "
                "what is driven from its folder is --format onnx"
            )
        graphs = (onnx_graph(folder / f"{name}.onnx", threads) for name in ("backbone", "head"))
        return cls.around(folder, settings, *graphs, execution=execution)

    @classmethod
    def around(
        cls, folder: Path, settings: dict[str, Any], backbone: Graph, head: Graph, *, execution: ExecutionConfig | None = None
    ) -> DeployedPolicy:
        """The policy of ``folder``, ``settings`` being its deploy.json, with these graphs. Raises CheckpointError."""
        try:
            history, queries, width = map(int, settings["window"])
            config = PolicyConfig.model_validate(settings["policy"])
            layout = PromptLayout.from_dict(settings["prompt"])
            transforms = Transforms.from_json((folder / "transforms.json").read_text())
            tokenizer = str(settings["tokenizer"])
        except (OSError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{folder}: not an exported policy, or damaged ({error!r})") from error
        if execution is not None:
            config = config.model_copy(update={"execution": execution})
        return cls(folder, backbone, head, transforms, config, layout, (history, queries, width), tokenizer)

    @property
    def history(self) -> int:
        return self._window[0]

    def _init_state(self) -> np.ndarray:
        return np.zeros((0, *self._window[1:]), dtype=np.float32)

    def _predict(
        self,
        sessions: Sequence[Session],
        images: Sequence[Mapping[str, np.ndarray]],
        robot_states: Sequence[ArrayLike | None],
    ) -> None:
        for session, observation, robot_state in zip(sessions, images, robot_states, strict=True):
            frames = self.transforms.images(observation)
            absent = [camera for camera in self.transforms.cameras if camera not in frames]
            if absent:
                raise DataError(f"an exported policy needs all its cameras; the observation lacks {', '.join(absent)}")
            stacked = np.stack([frames[camera].transpose(2, 0, 1) for camera in self.transforms.cameras])
            state = self.transforms.normalize_state(robot_state)
            actions, session.state = self._step(stacked, session.prompt, state, session.state)
            session.chunk = self.transforms.normalizer.denormalize(actions)

    def _step(
        self, images: np.ndarray, prompt: str, state: np.ndarray | None, past: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """images (C, 3, h, w) uint8, state (S,), past (k < H + 1, Q, D) -> normalised actions (L, A), the features with new."""
        inputs = {"images": images[None], "tokens": self._prompt_tokens(prompt)}
        if state is not None:
            inputs["state"] = state[None]
        past = np.concatenate([past[max(0, len(past) + 1 - self.history) :], self._backbone(inputs)])
        window = np.zeros((1, *self._window), dtype=np.float32)
        window[0, : len(past)] = past
        return self._head({"window": window, "step": np.array([len(past) - 1])})[0], past

    def _prompt_tokens(self, prompt: str) -> np.ndarray:
        if prompt not in self._tokens:
            if len(self._tokens) >= 4096:
                self._tokens.clear()
            self._tokens[prompt] = input_tokens(self._tokenizer, self._layout, prompt)
        return self._tokens[prompt]

    def check_example(self) -> float:
        """Largest difference of a normalised action between what the model said at export and what the graphs say here."""
        try:
            example = json.loads((self.folder / "example.json").read_text())
            rng = np.random.default_rng(example["seed"])
            expected = np.array(example["actions"])
            prompt = self.transforms.prompt(example["instruction"])
        except (OSError, json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{self.folder / 'example.json'}: missing or damaged ({error!r})") from error
        size = (1, 3, *self.transforms.image_size)
        images = np.concatenate([rng.integers(0, 256, size, dtype=np.uint8) for _ in self.transforms.cameras])
        state = None
        if self.transforms.state is not None:
            state = rng.uniform(-1, 1, (1, len(self.transforms.state.names))).astype(np.float32)[0]
        actions, _ = self._step(images, prompt, state, self._init_state())
        return float(np.abs(actions - expected).max())


def _settings(folder: Path) -> dict[str, Any]:
    try:
        settings: dict[str, Any] = json.loads((folder / "deploy.json").read_text())
        if settings["format"] in ("onnx", "torch"):
            return settings
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder}: not an exported policy, or damaged ({error!r})") from error
    raise CheckpointError(f"{folder / 'deploy.json'}: format {settings['format']!r} is unknown to this version")


def onnx_graph(path: Path, threads: int | None = None) -> Graph:
    try:
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as errors
    except ImportError as error:
        raise MissingExtraError("onnxruntime", "onnx") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    if not path.exists():
        raise CheckpointError(f"{path} is missing")
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except (errors.InvalidProtobuf, errors.InvalidGraph, errors.Fail, errors.NotImplemented, RuntimeError) as error:
        raise CheckpointError(f"{path}: onnxruntime cannot load it ({' '.join(str(error).split())[:300]})") from error
    names = {value.name for value in session.get_inputs()}

    def run(inputs: dict[str, np.ndarray]) -> np.ndarray:
        # an input that the model does not look at is no input of the graph
        result: np.ndarray = session.run(None, {name: value for name, value in inputs.items() if name in names})[0]
        return result

    return run


def _tokenizer(path: Path, digest: str) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingExtraError("tokenizers", "onnx") from error
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: missing ({error!r})") from error
    if hashlib.sha256(content).hexdigest() != digest:  # the tokenizer's own complaint would be a bare Exception
        raise CheckpointError(f"{path} is damaged: it is not the file that was exported")
    return Tokenizer.from_buffer(content)
