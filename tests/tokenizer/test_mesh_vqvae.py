"""Pooling, quantizer, tokenizer."""

import numpy as np
import pytest
import torch

from shared import tiny_bodies, tiny_tokenizer
from vqhps.checkpoint import CheckpointCard, load_checkpoint, save_checkpoint
from vqhps.errors import VqhpsError
from vqhps.evaluation.tokenizer import tokenizer_errors
from vqhps.tokenizer.mesh_conv import MeshPool
from vqhps.tokenizer.networks import ComponentNetwork
from vqhps.tokenizer.quantizer import EMAQuantizer, perplexity


def test_pooling_keeps_constants_and_stays_inside():
    pool = MeshPool(torch.randint(0, 20, (7, 4)), 20)
    pool.weights.data.normal_()
    torch.testing.assert_close(pool(torch.full((20, 2, 3), 1.7)), torch.full((7, 2, 3), 1.7))
    x = torch.rand(20, 2, 3)
    assert pool(x).min() >= x.min() and pool(x).max() <= x.max()


@pytest.mark.parametrize("books", [1, 6])
def test_quantizer_takes_the_nearest_code(books):
    torch.manual_seed(0)
    quantizer = EMAQuantizer(books, 16, 3).eval()
    latents = torch.randn(4, 6, 3)
    quantized, indices, commitment = quantizer(latents)
    for b in range(4):
        for t in range(6):
            distance = (quantizer.codebook[t % books] - latents[b, t]).square().sum(1)
            assert indices[b, t] == distance.argmin()
    torch.testing.assert_close(quantized, quantizer.codes(indices))
    assert commitment == pytest.approx((latents - quantizer.codes(indices)).square().mean().item(), rel=1e-5)
    one_hot = torch.nn.functional.one_hot(indices, 16).float()
    torch.testing.assert_close(quantizer.expected_codes(one_hot), quantizer.codes(indices))


@pytest.mark.parametrize("books", [1, 6])
def test_each_level_takes_the_code_nearest_to_what_is_left(books):
    torch.manual_seed(0)
    quantizer = EMAQuantizer(books, 16, 3, depth=3).eval()
    latents = torch.randn(4, 6, 3)
    quantized, indices, _ = quantizer(latents)
    left = latents.clone()
    for level, chosen in enumerate(indices.chunk(3, 1)):
        for b in range(4):
            for t in range(6):
                book = quantizer.codebook[level * books + t % books]
                assert chosen[b, t] == (book - left[b, t]).square().sum(1).argmin()
                left[b, t] -= book[chosen[b, t]]
    torch.testing.assert_close(quantized, latents - left)
    one_hot = torch.nn.functional.one_hot(indices, 16).float()
    torch.testing.assert_close(quantizer.expected_codes(one_hot), quantizer.codes(indices))


def test_more_levels_lower_the_error():
    torch.manual_seed(0)
    latents = torch.randn(2000, 2, 2)
    errors = []
    for depth in (1, 2, 3):
        quantizer = EMAQuantizer(2, 16, 2, depth=depth).eval()
        quantizer.initialise(latents)
        errors.append(quantizer(latents)[2].item())
    assert errors[1] < 0.2 * errors[0] and errors[2] < 0.2 * errors[1]


def test_all_levels_follow_their_latents():
    torch.manual_seed(0)
    quantizer = EMAQuantizer(1, 4, 2, decay=0.9, depth=2).train()
    coarse = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    fine = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    quantizer.initialise((coarse[:, None] + fine).reshape(1, -1, 2).repeat(1, 30, 1))
    for _ in range(200):
        latents = coarse[torch.randint(4, (64,))] + fine[torch.randint(4, (64,))]
        commitment = quantizer(latents[None])[2]
    assert commitment < 0.01


def test_gradient_passes_straight_through():
    quantizer = EMAQuantizer(1, 8, 2).eval()
    latents = torch.randn(2, 3, 2, requires_grad=True)
    quantizer(latents)[0].sum().backward()
    torch.testing.assert_close(latents.grad, torch.ones_like(latents))


def test_evaluation_leaves_the_codebook_bit_identical():
    model = tiny_tokenizer().eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model(tiny_bodies(8))
    model.encode(tiny_bodies(8))
    tokenizer_errors(model.train(), tiny_bodies(8), tiny_bodies(8))  # as in mid-training
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_codes_follow_their_latents_and_dead_ones_return():
    torch.manual_seed(0)
    quantizer = EMAQuantizer(1, 4, 2, decay=0.9).train()
    quantizer.codebook.copy_(torch.tensor([[[0.0, 0.0], [10.0, 0.0], [50.0, 50.0], [60.0, 50.0]]]))
    quantizer.sums.copy_(quantizer.codebook)
    centres = torch.tensor([[1.0, 0.0], [9.0, 1.0], [1.0, 6.0], [9.0, -6.0]])
    for _ in range(300):
        quantizer((centres[torch.randint(4, (64,))] + 0.1 * torch.randn(64, 2))[None])
    nearest = torch.cdist(centres, quantizer.codebook[0]).min(1).values
    assert nearest.median() < 0.3  # codes sit on their clusters ...
    assert (quantizer.codebook[0].norm(dim=1) < 12).all()  # ... and the two far ones came back
    assert (quantizer.usage[0] > 1).all()


@pytest.mark.parametrize("depth", [1, 2])
def test_codes_that_few_use_take_half_of_a_crowded_cell(depth):
    torch.manual_seed(0)
    latents = torch.randn(4000, 2, 2)
    quantizer = EMAQuantizer(2, 16, 2, depth=depth).eval()
    quantizer.initialise(latents)
    quantizer.codebook[:, 3:9] = 40.0  # out of reach

    def error_and_least():
        indices = quantizer.nearest(latents)
        least = min(int(torch.bincount(column, minlength=16).min()) for column in indices.T)
        return float((quantizer.codes(indices) - latents).norm(dim=2).mean()), least

    before = error_and_least()
    assert before[1] == 0 and quantizer.share_cells(latents, least=20) >= 6 * 2 * depth
    after = error_and_least()
    assert after[1] >= 20 and after[0] < 0.8 * before[0]
    assert quantizer.share_cells(latents, least=20) == 0  # nothing is left to move
    torch.testing.assert_close(quantizer.sums, quantizer.codebook * quantizer.usage[..., None])


def test_equal_latents_leave_codes_unused():
    quantizer = EMAQuantizer(1, 4, 2).eval()
    assert quantizer.share_cells(torch.ones(100, 1, 2), least=10) == 0
    assert quantizer.codebook.isfinite().all()


@pytest.mark.parametrize("indices, value", [([[0], [0]], 1.0), ([[0], [1], [2], [3]], 4.0)])
def test_perplexity_counts_codes_in_use(indices, value):
    assert perplexity(torch.tensor(indices), 8) == pytest.approx(value)


@pytest.mark.parametrize("network", ["components", "conv"])
@pytest.mark.parametrize("batch, depth", [(1, 1), (5, 1), (5, 2)])
def test_encode_and_decode_any_batch(network, batch, depth):
    model = tiny_tokenizer(network, depth=depth).eval()
    bodies = tiny_bodies(batch)
    indices = model.encode(bodies)
    assert indices.shape == (batch, 6 * depth) and indices.dtype == torch.int64
    decoded = model.decode(indices)
    assert decoded.shape == bodies.shape
    torch.testing.assert_close(decoded, model(bodies)[0])
    assert torch.equal(model.encode(bodies[-1:]), indices[-1:])


@pytest.mark.parametrize("network", ["components", "conv"])
def test_it_learns_bodies(network):
    """A short training lowers the error on unseen bodies well below that of the mean body."""
    model = tiny_tokenizer(network, code_dim=2 if network == "components" else 4)
    train, test = tiny_bodies(256), tiny_bodies(64, seed=1)
    template = model.mesh.get_buffer("template")
    if isinstance(model.network, ComponentNetwork):
        model.network.initialise(train - template, model.mesh.get_buffer("weight"))
    with torch.no_grad():
        model.quantizer.initialise(model.latents(train))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(150):
        batch = train[torch.randint(len(train), (32,), generator=generator)]
        rebuilt, _, commitment = model(batch)
        loss = (rebuilt - batch).norm(dim=-1).mean() + 0.25 * commitment
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    error = (model.decode(model.encode(test)) - test).norm(dim=-1).mean()
    mean_body = (train.mean(0) - test).norm(dim=-1).mean()
    assert error < (0.15 if network == "components" else 0.5) * mean_body


def test_token_carries_strong_and_weak_components():
    network = tiny_tokenizer().network
    assert network.order.tolist() == [[0, 11], [1, 10], [2, 9], [3, 8], [4, 7], [5, 6]]


def test_checkpoint_rebuilds_itself(tmp_path):
    model = tiny_tokenizer().eval()
    save_checkpoint(tmp_path / "c", model, CheckpointCard("mesh_vqvae", "capsule", {"pve": 1.0}))
    again = load_checkpoint(tmp_path / "c", "mesh_vqvae")
    assert not again.training
    bodies = tiny_bodies(3)
    assert torch.equal(again.decode(again.encode(bodies)), model.decode(model.encode(bodies)))


def test_half_checkpoint_is_half_the_size_and_close(tmp_path):
    model = tiny_tokenizer().eval()
    card = CheckpointCard("mesh_vqvae")
    save_checkpoint(tmp_path / "full", model, card)
    save_checkpoint(tmp_path / "half", model, card, half=True)
    sizes = [(tmp_path / n / "model.safetensors").stat().st_size for n in ("half", "full")]
    assert sizes[0] < 0.65 * sizes[1]
    indices = model.encode(tiny_bodies(3))
    again = load_checkpoint(tmp_path / "half")
    model.requires_grad_(False), again.requires_grad_(False)
    np.testing.assert_allclose(again.decode(indices).numpy(), model.decode(indices).numpy(), atol=2e-3)


@pytest.mark.parametrize("damage", ["missing", "cut", "json", "kind", "key", "tensor"])
def test_damaged_checkpoint_is_one_clear_error(tmp_path, damage):
    folder = tmp_path / "c"
    save_checkpoint(folder, tiny_tokenizer(), CheckpointCard("mesh_vqvae"))
    config, weights = folder / "config.json", folder / "model.safetensors"
    text = config.read_text()
    if damage == "missing":
        weights.unlink()
    elif damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "json":
        config.write_text(text[:-20])
    elif damage == "kind":
        config.write_text(text.replace("mesh_vqvae", "mystery"))
    elif damage == "key":
        config.write_text(text.replace('"num_codes"', '"num_coeds"'))
    else:
        config.write_text(text.replace('"num_codes": 16', '"num_codes": 17'))
    with pytest.raises(VqhpsError) as caught:
        load_checkpoint(folder)
    assert "\n" not in str(caught.value)
