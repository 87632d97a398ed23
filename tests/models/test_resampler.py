import torch
from torch.nn import functional as F

from anyvla.models.resampler import PerceiverResampler


def make(width: int = 12) -> PerceiverResampler:
    torch.manual_seed(0)
    model = PerceiverResampler(width, depth=2, latents=5, heads=3, head_width=4, expansion=2).double()
    for parameter in model.parameters():  # norms too
        torch.nn.init.normal_(parameter, std=0.5)
    return model


@torch.no_grad()
def test_it_is_the_published_computation() -> None:
    """Flamingo's resampler, written out head by head and latent by latent from the parameters."""
    model = make()
    p = dict(model.named_parameters())
    tokens = torch.randn(2, 7, 12, dtype=torch.float64)

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * p[f"{name}.weight"] + p[f"{name}.bias"]

    for row, out in zip(tokens, model(tokens), strict=True):
        latents = p["latents"]
        for i in range(2):
            name = f"layers.{i}.0"
            normed = norm(latents, f"{name}.norm_latents")
            both = torch.cat([norm(row, f"{name}.norm_media"), normed])
            q, kv = normed @ p[f"{name}.to_q.weight"].T, both @ p[f"{name}.to_kv.weight"].T
            heads = []
            for h in range(3):
                part = slice(4 * h, 4 * h + 4)
                weights = (q[:, part] @ kv[:, :12][:, part].T * 4**-0.5).exp()
                heads.append(weights / weights.sum(-1, keepdim=True) @ kv[:, 12:][:, part])
            latents = latents + torch.cat(heads, -1) @ p[f"{name}.to_out.weight"].T
            inner = F.gelu(norm(latents, f"layers.{i}.1.0") @ p[f"layers.{i}.1.1.weight"].T)
            latents = latents + inner @ p[f"layers.{i}.1.3.weight"].T
        torch.testing.assert_close(out, norm(latents, "norm"), atol=1e-9, rtol=0)


def test_the_published_size() -> None:
    with torch.device("meta"):
        model = PerceiverResampler(1024)
    inner, width = 8 * 64, 1024
    attention = 4 * width + width * inner + width * 2 * inner + inner * width
    feed_forward = 2 * width + 2 * 4 * width * width
    assert sum(p.numel() for p in model.parameters()) == 64 * width + 6 * (attention + feed_forward) + 2 * width
    assert model(torch.empty(3, 257, 1024, device="meta")).shape == (3, 64, 1024)


@torch.no_grad()
def test_the_order_of_the_tokens_does_not_matter_and_rows_do_not_mix() -> None:
    model = make()
    tokens = torch.randn(3, 7, 12, dtype=torch.float64)
    out = model(tokens)
    torch.testing.assert_close(model(tokens[:, torch.randperm(7)]), out, atol=1e-9, rtol=0)
    torch.testing.assert_close(model(tokens[1:2]), out[1:2], atol=1e-9, rtol=0)
    assert not torch.allclose(model(tokens[:, :6]), out)


def test_gradients_reach_every_parameter_and_the_tokens() -> None:
    model = make()
    tokens = torch.randn(2, 7, 12, dtype=torch.float64, requires_grad=True)
    model(tokens).square().sum().backward()
    assert tokens.grad.abs().min() > 0
    assert all(p.grad.abs().max() > 0 for p in model.parameters())
