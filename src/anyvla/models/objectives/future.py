"""Future-frame prediction: what the robot will see next must be in the features that its actions come from (GR-1).

A small transformer reads the query features of a frame and one token for each patch of the frames behind it, and says the
pixels of the patches. Targets are normalised patch by patch (MAE, arXiv 2111.06377; GR-1, arXiv 2312.13139).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import nn

from anyvla.batch import Batch
from anyvla.config.objectives import FutureConfig
from anyvla.errors import ConfigError
from anyvla.models.losses import masked_mean


class FuturePrediction(nn.Module):
    """Squared error of the predicted pixels of frames t + 1 to t + N, for every frame t of a window and every camera.

    Masked, a few patches of these frames are shown, and the loss is that of the others (with a tube, those at the same places
    in all N frames: VideoMAE, arXiv 2203.12602).
    """

    def __init__(
        self, config: FutureConfig, width: int, queries: int, cameras: Sequence[str], image_size: tuple[int, int]
    ) -> None:
        """``width``: D. ``queries``: Q. ``cameras``: those to predict. ``image_size``: (h, w)."""
        super().__init__()
        self.cameras = tuple(cameras)
        self.frames = config.next
        self.patch = config.patch
        self.tube = config.masked is not None and config.masked.tube
        if image_size[0] % config.patch or image_size[1] % config.patch:
            raise ConfigError(f"objectives.future.patch {config.patch} does not divide the image size {list(image_size)}")
        rows, columns = (side // config.patch for side in image_size)
        self.patches = rows * columns
        self.shown = 0 if config.masked is None else round((1 - config.masked.ratio) * self.patches)
        if config.masked is not None and not 0 < self.shown < self.patches:
            raise ConfigError(
                f"objectives.future.masked.ratio {config.masked.ratio} shows {self.shown} of {self.patches} patches; "
                "change it, or take a smaller objectives.future.patch"
            )
        hidden, pixels = config.hidden, 3 * config.patch**2
        self.read = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden))
        self.look = nn.Linear(pixels, hidden) if config.masked is not None else None
        self.mask_embedding = nn.Parameter(0.02 * torch.randn(hidden))
        self.query_embedding = nn.Parameter(0.02 * torch.randn(queries, hidden))
        self.row_embedding = nn.Parameter(0.02 * torch.randn(rows, 1, hidden))
        self.column_embedding = nn.Parameter(0.02 * torch.randn(1, columns, hidden))
        self.frame_embedding = nn.Parameter(0.02 * torch.randn(config.next, 1, hidden))
        self.camera_embedding = nn.Parameter(0.02 * torch.randn(len(self.cameras), 1, 1, hidden))
        make = partial(nn.TransformerEncoderLayer, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
        layers = [make(hidden, config.attention_heads, 4 * hidden) for _ in range(config.layers)]
        self.transformer = nn.Sequential(*layers, nn.LayerNorm(hidden))
        self.write = nn.Linear(hidden, pixels)

    def forward(self, features: torch.Tensor, batch: Batch) -> torch.Tensor:
        """features (B, H, Q, D) and the frames of ``batch`` -> the loss: 0 where no frame to come is real."""
        if batch.future is None or batch.future_mask is None:
            raise ValueError("future prediction needs the frames behind the window, and the batch has none")
        windows = [torch.cat([batch.images[camera], batch.future[camera]], dim=1) for camera in self.cameras]
        pixels = self.cut(torch.stack(windows, dim=2))
        # frame h + 1 + n of the window, for each of its frames h:  (B, H, C, N, P, pixels)
        window = features.shape[1]
        ahead = torch.arange(window)[:, None] + 1 + torch.arange(self.frames)
        pixels = pixels[:, ahead].transpose(2, 3)
        real = torch.cat([batch.action_mask[:, :, 0], batch.future_mask], dim=1)[:, ahead][:, :, None].expand(pixels.shape[:4])
        if batch.present is not None:
            chosen = [list(batch.images).index(camera) for camera in self.cameras]
            real = real & batch.present[:, None, chosen, None]
        hidden = self.draw_mask(pixels) | ~real[..., None]  # of a frame that does not exist nothing is shown
        deviation = pixels.var(-1, keepdim=True, correction=0).add(1e-6).sqrt()
        target = (pixels - pixels.mean(-1, keepdim=True)) / deviation
        error = (self.predict(features, pixels, hidden).float() - target).square().mean(-1)
        return masked_mean(error, real[..., None] & hidden)

    def predict(self, features: torch.Tensor, pixels: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Normalised patches (B, H, C, N, P, pixels), from features (B, H, Q, D) and the ``pixels`` that are not ``hidden``."""
        batch, window, cameras = pixels.shape[:3]
        places = (self.row_embedding + self.column_embedding).flatten(0, 1)
        tokens = self.mask_embedding.expand(*pixels.shape[:-1], -1)
        if self.look is not None:
            tokens = torch.where(hidden[..., None], tokens, self.look(pixels).to(tokens.dtype))
        tokens = tokens + places + self.frame_embedding + self.camera_embedding
        read = (self.read(features) + self.query_embedding)[:, :, None].expand(-1, -1, cameras, -1, -1)
        sequence = torch.cat([read, tokens.flatten(3, 4).to(read.dtype)], dim=3)
        said = self.transformer(sequence.flatten(0, 2))[:, read.shape[3] :]
        return self.write(said).unflatten(0, (batch, window, cameras)).unflatten(3, pixels.shape[3:5])

    def cut(self, frames: torch.Tensor) -> torch.Tensor:
        """(B, T, C, 3, h, w) uint8 -> patches (B, T, C, P, pixels) in [-1, 1]."""
        size = self.patch
        tiles = frames.unflatten(-1, (-1, size)).unflatten(-3, (-1, size))  # (B, T, C, 3, rows, size, columns, size)
        return tiles.permute(0, 1, 2, 4, 6, 3, 5, 7).flatten(5).flatten(3, 4) / 127.5 - 1

    def draw_mask(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, H, C, N, P) bool, True where a patch is hidden; each row of P has ``shown`` others, at random places."""
        batch, window, cameras, frames, patches = pixels.shape[:5]
        if not self.shown:
            return torch.ones(pixels.shape[:5], dtype=torch.bool, device=pixels.device)
        draws = torch.rand(batch, window, cameras, 1 if self.tube else frames, patches, device=pixels.device)
        return (draws.argsort(-1).argsort(-1) >= self.shown).expand(-1, -1, -1, frames, -1)
