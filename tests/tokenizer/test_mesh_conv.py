"""Mesh convolution and pooling against the published order of operations, and the bench that compares their speed."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from vqhps.cli import main
from vqhps.errors import VqhpsError
from vqhps.evaluation import tokenizer_speed
from vqhps.tokenizer.mesh_conv import MeshConv, MeshPool
from vqhps.tokenizer.mesh_edges import MeshEdges
from vqhps.tokenizer.published_order import published_conv, published_pool

INPUTS = 20


def padded_table(seed: int = 0) -> torch.Tensor:
    """Neighbours of 7 vertices among 20: full rows, padded ones, a vertex twice, and two vertices without any."""
    table = torch.randint(0, INPUTS, (7, 5), generator=torch.Generator().manual_seed(seed))
    table[1, 3:] = INPUTS
    table[2, 0] = INPUTS
    table[4, 1] = table[4, 0]
    table[[3, 6]] = INPUTS
    return table


def compare(layer, published, x):
    """Output and all gradients equal those of the published order, which is batch first."""
    y, expected = layer(x), published(layer, x.transpose(0, 1)).transpose(0, 1)
    torch.testing.assert_close(y, expected)
    weight = torch.randn_like(expected)
    inputs = [x, *layer.parameters()]
    ours = torch.autograd.grad((y * weight).sum(), inputs)
    torch.testing.assert_close(ours, torch.autograd.grad((expected * weight).sum(), inputs))


@pytest.mark.parametrize("part", [1, 1 << 19])
@pytest.mark.parametrize("channels", [(3, 8), (8, 3), (5, 5), (33, 34), (34, 33)])
@pytest.mark.parametrize("batch", [1, 2])
def test_convolution_equals_the_published_order(channels, batch, part, monkeypatch):
    """Both sides to gather on, bases one by one and together, one part and many."""
    monkeypatch.setattr("vqhps.tokenizer.mesh_edges._PART_NUMBERS", part)
    torch.manual_seed(0)
    layer = MeshConv(padded_table(), INPUTS, *channels, bases=3).double()
    torch.nn.init.normal_(layer.bias)
    compare(layer, published_conv, torch.randn(INPUTS, batch, channels[0], dtype=torch.double, requires_grad=True))


def test_pooling_equals_the_published_order():
    torch.manual_seed(0)
    layer = MeshPool(padded_table(), INPUTS).double()
    torch.nn.init.normal_(layer.weights)
    compare(layer, published_pool, torch.randn(INPUTS, 2, 3, dtype=torch.double, requires_grad=True))


@pytest.mark.parametrize("channels", [(2, 3), (3, 2)])
def test_gradients_of_the_convolution_are_derivatives(channels):
    torch.manual_seed(0)
    layer = MeshConv(padded_table(), INPUTS, *channels, bases=2).double()
    names = [name for name, _ in layer.named_parameters()]

    def run(x, *values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), x)

    x = torch.randn(INPUTS, 2, channels[0], dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(run, (x, *layer.parameters()))


def test_gradients_of_pooling_are_derivatives():
    torch.manual_seed(0)
    layer = MeshPool(padded_table(), INPUTS).double()
    x = torch.randn(INPUTS, 2, 3, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, w: torch.func.functional_call(layer, {"weights": w}, x), (x, layer.weights)
    )


def test_padding_has_no_effect():
    """A padded neighbour gives what a narrower table gives, whatever its weights, and they get no gradient."""
    torch.manual_seed(0)
    table = padded_table()[:2, :3]
    wide = torch.cat([table, torch.full((2, 2), INPUTS)], 1)
    x = torch.randn(INPUTS, 2, 3)
    for narrow, padded, name in (
        (MeshConv(table, INPUTS, 3, 4), MeshConv(wide, INPUTS, 3, 4), "coefficients"),
        (MeshPool(table, INPUTS), MeshPool(wide, INPUTS), "weights"),
    ):
        values = getattr(padded, name).data
        padded.load_state_dict({**narrow.state_dict(), name: values})
        values[:, :3] = getattr(narrow, name).data
        values[:, 3:] = 100
        torch.testing.assert_close(padded(x), narrow(x))
        padded(x).square().sum().backward()
        assert (getattr(padded, name).grad[:, 3:] == 0).all()


def test_frozen_layer_still_passes_gradients_on():
    torch.manual_seed(0)
    layer = MeshConv(padded_table(), INPUTS, 3, 4)
    x = torch.randn(INPUTS, 2, 3, requires_grad=True)
    expected = torch.autograd.grad(layer(x).square().sum(), x)[0]
    layer.requires_grad_(False)
    torch.testing.assert_close(torch.autograd.grad(layer(x).square().sum(), x)[0], expected)


@pytest.mark.parametrize("wrong", [-1, INPUTS + 1])
def test_neighbours_beyond_the_mesh_are_refused(wrong):
    table = padded_table()
    table[0, 0] = wrong
    with pytest.raises(VqhpsError, match=f"0..{INPUTS} .* got .*{wrong}"):
        MeshEdges(table, INPUTS)


@pytest.mark.filterwarnings("ignore")  # the exporter's own
def test_layers_export_to_onnx(tmp_path):
    """The exported graph gives what the layers give, for any batch, in plain products and no loops."""
    torch.manual_seed(0)
    layers = torch.nn.Sequential(MeshConv(padded_table(), INPUTS, 4, 3), MeshPool(padded_table().clamp(max=7), 7))
    x = torch.randn(INPUTS, 5, 4)
    path = tmp_path / "layers.onnx"
    batch = {"input": {1: torch.export.Dim("N", min=1, max=64)}}
    with torch.no_grad():
        torch.onnx.export(layers.eval(), (x[:, :2],), path, dynamo=True, verbose=False, dynamic_shapes=batch)
        expected = layers(x).numpy()
    assert "Loop" not in {node.op_type for node in onnx.load(path).graph.node}
    session = onnxruntime.InferenceSession(path)
    np.testing.assert_allclose(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0], expected, atol=1e-5)


def test_bench_reports_both_orders(capsys):
    assert main(["bench", "tokenizer", "--quick", "--runs", "1"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["peak_gflops"] > 0 and report["runs"] == 1
    for batch in (1, 2):
        case = report[f"miniature, batch {batch}"]
        assert 0 < case["output_error"] < 1e-5 and 0 < case["gradient_error"] < 1e-5
        for kind in ("forward", "step"):
            assert case[kind]["ratio"] == pytest.approx(case[kind]["published_ms"] / case[kind]["ours_ms"], rel=0.05)
            assert 0 < case[kind]["peak_share"] < 1


def test_bench_refuses_no_runs(capsys):
    assert main(["bench", "tokenizer", "--runs", "0"]) == 2
    assert "at least 1, got 0" in capsys.readouterr().err


@pytest.mark.parametrize("what, error", [("outputs", "output_error"), ("gradients", "gradient_error")])
def test_bench_fails_where_the_orders_disagree(what, error, monkeypatch, capsys):
    right = tokenizer_speed._Ours.forward

    def wrong(self, offsets):
        y = right(self, offsets)
        return 1.001 * y if what == "outputs" else 1.001 * y - 0.001 * y.detach()

    monkeypatch.setattr(tokenizer_speed._Ours, "forward", wrong)
    assert main(["bench", "tokenizer", "--quick"]) == 2
    assert f"disagree: {error}" in capsys.readouterr().err


def test_operations_are_counted():
    """Of the first layer and pooling: 9 bases, 3 to 32 channels, as many sums as edges."""
    levels = tokenizer_speed.sphere_hierarchy((120, 60, 30, 10))
    network = tokenizer_speed.conv_network(levels)
    network.encoder, network.decoder = network.encoder[:3], network.decoder[:0]
    near, pooled = ((table < 120).sum() for table in (levels[0].conv, levels[0].pool))
    assert tokenizer_speed.flops(network, 2) == 2 * (2 * 9 * (120 * 3 * 32 + near * 3) + 2 * pooled * 32)


def test_sphere_has_the_published_sizes_and_padding():
    levels = tokenizer_speed.sphere_hierarchy((690, 192, 100, 54))
    assert [len(level.conv) for level in levels] == [690, 192, 100, 54]
    assert [level.conv.shape[1] for level in levels] == [10, 21, 26, 19]
    for level, (mean, _) in zip(levels, ((7.0, 0), (10.6, 0), (14.0, 0), (10.3, 0)), strict=True):
        count = (level.conv < len(level.conv)).sum(1)
        assert count.min() >= 1 and abs(count.mean() - mean) < 0.7
    assert set(levels[0].pool.ravel()) - {690} == set(range(690))
