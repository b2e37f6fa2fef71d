"""Every figure over all attentions that it makes sense for, on small networks; what it says where it makes none."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from networks import SMALL, build, fitting
from sklearn.ensemble import RandomForestRegressor
from torch import nn

import attn
from attn.analysis import confusion, connections, embedding, gradcam, histograms, images, importance, maps, trace, weights
from attn.analysis.pictures import Picture
from attn.attention import Attention
from attn.config import groups
from attn.config.schema import Data
from attn.data.loader import Seeded, evaluation_data
from attn.errors import UserError
from attn.models.create import set_last_norm

SIDE = 48
ATTENTIONS = attn.list_attentions()
WITHOUT_WEIGHTS = {"none", "strip", "aa", "ea", "sasa", "ba2m", "ba2m_inside"}  # BA2M is off in evaluation
WITHOUT_CHANNELS = WITHOUT_WEIGHTS | {"gc", "dca_gc", "sge"}
BRIDGED = {"ba", "ba_v2", "ba_fca", "ba_ablation"}
CONNECTED = {"dca_se", "dca_ge", "dca_gc", "dca_cbam", "dca_sk"}
FAMILIES = {
    "vit": ("vit_tiny_patch16_224", {"img_size": SIDE, "depth": 2, "embed_dim": 48, "num_heads": 3}),
    "pvt": ("pvt_v2_b0", {"depths": (1, 1, 1, 1), "embed_dims": (16, 32, 40, 64)}),
    "swin": ("swin_tiny_patch4_window7_224", {"img_size": 64, "window_size": 2, "depths": (1, 1, 1, 1), "embed_dim": 24}),
    "densenet": ("densenet121", {"block_config": (1, 2, 1), "growth_rate": 16}),
    "convnext": ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (16, 32, 48, 64)}),
    "regnet": ("regnety_002", {}),
    "shufflenet": ("shufflenet_v2_x0_5", {}),
    "preact": ("cifar_preresnet110_bottleneck", {"depths": (1, 1, 1)}),
    "mobile": ("mobilenetv3_small_100", {}),
}


@cache
def network(attention: str) -> nn.Module:
    model = build(fitting(attention), attention).eval()
    set_last_norm(model, zero=False)  # else the branches of a new network give nothing
    return model


@cache
def member(family: str, attention: str | None) -> nn.Module:
    name, options = FAMILIES[family]
    torch.manual_seed(0)
    model = attn.create_model(name, attention, 8, **options).eval()
    set_last_norm(model, zero=False)
    return model


@cache
def data(side: int = SIDE) -> Seeded:
    return evaluation_data(Data(name="fake", source="fake", num_classes=8, samples=16, image_size=side, test_resize=side))


def batch(count: int = 2, side: int = SIDE) -> torch.Tensor:
    return torch.stack([data(side)[0, i][0] for i in range(count)])


def content(model: nn.Module) -> dict[str, Any]:
    """All that a figure could leave on a module."""
    found: dict[str, Any] = {"state": {k: v.clone() for k, v in model.state_dict().items()}}
    for name, module in model.named_modules():
        hooks = [len(getattr(module, kind)) for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")]
        found[name] = (type(module), module.training, sorted(vars(module)), hooks)
    found["grad"] = [p.grad is None for p in model.parameters()]
    return found


@pytest.fixture
def untouched() -> Iterator[Any]:
    """Checks that the networks passed to it are the same at the end."""
    seen: list[tuple[nn.Module, dict[str, Any]]] = []
    yield lambda model: seen.append((model, content(model)))
    for model, before in seen:
        after = content(model)
        for name, value in before.pop("state").items():
            assert torch.equal(after["state"][name], value), name
        after.pop("state")
        assert after == before


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_a_traced_pass_is_the_plain_one_and_readings_are_what_was_multiplied(attention: str) -> None:
    model, x = network(attention), batch()
    with torch.no_grad():
        seen = trace.forward(model, x)
        assert torch.equal(seen.logits, model(x))
        refined = 0
        for block in seen.blocks:
            for call in block.passage.calls:
                if not isinstance(call.module, Attention):
                    continue
                reading = call.module.reading(call.feats, call.state)
                assert reading is None or attention not in WITHOUT_WEIGHTS
                if reading is None or not {"channel", "spatial", "joint"} & set(reading.weights):
                    continue
                if type(call.module).__name__ in ("GC", "DCAGC"):  # they add, and weight only their pooling
                    total = reading.weights["spatial"].sum((1, 2, 3))
                    torch.testing.assert_close(total, torch.ones_like(total))
                    continue
                expected = call.feats[-1]
                for kind, value in reading.weights.items():
                    if kind == "spatial":
                        value = value.repeat_interleave(expected.shape[1] // value.shape[1], 1)
                    value = value if value.ndim == 4 else value[:, :, None, None]
                    expected = expected + expected * value if kind == "joint" else expected * value
                torch.testing.assert_close(call.output, expected, rtol=1e-4, atol=1e-5)
                refined += 1
        assert refined or attention in WITHOUT_WEIGHTS | {"gc", "dca_gc", "aw", "sk", "dca_sk"}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attention", [None, "dca_se", "bam"])
def test_every_family_is_traced(family: str, attention: str | None, untouched: Any) -> None:
    side = 64 if family in ("swin", "convnext") else SIDE
    model, x = member(family, attention), batch(2, side)
    untouched(model)
    with torch.no_grad():
        seen = trace.forward(model, x)
        assert torch.equal(seen.logits, model(x))
    labels = [block.label for block in seen.blocks]
    assert labels[0] == "1.1"
    assert len(set(labels)) == len(labels)
    assert any(label.endswith(".end") for label in labels) == (attention == "bam")
    heat = gradcam.measure(family, model, x)
    assert heat.maps.shape == (1, 2, side, side)
    assert heat.maps.max() == pytest.approx(1, abs=1e-4)
    stages = dict.fromkeys(str(block.stage) for block in seen.blocks)
    places = [s for s in stages if not (family == "vit" and attention is None)]
    shown = [maps.measure(family, model, x, at, (0, 1)).maps.shape[:2] for at in stages]
    assert shown == [(2, 2)] * len(stages)
    if family != "vit":
        assert gradcam.measure(family, model, x, places).maps.shape[0] == len(places)
    if attention == "dca_se":
        (joined,) = connections.measure(family, model, side)
        having = [number for number, block in enumerate(seen.blocks, start=1) if block.readings()]
        assert joined.index.tolist() == having[1:]
        assert histograms.measure(family, model, data(side), [0, 1]).blocks == [labels[number - 1] for number in having]


def test_the_backbones_own_squeeze_and_excitation_is_read() -> None:
    model, x = member("mobile", None), batch()
    with torch.no_grad():
        calls = [
            c for b in trace.forward(model, x).blocks for c in b.passage.calls if type(c.module).__name__ == "SqueezeExcite"
        ]
        assert calls
        for call in calls:
            reading = trace.native_reading(call.module, call.feats[-1])
            assert reading is not None
            torch.testing.assert_close(call.output, call.feats[-1] * reading.weights["channel"][:, :, None, None])


def test_a_network_without_blocks_is_refused() -> None:
    with pytest.raises(UserError, match="whose blocks attn does not know"):
        trace.forward(attn.create_model("vgg11", None, 8), batch())


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_weights(attention: str, untouched: Any) -> None:
    model = network(attention)
    untouched(model)
    chosen = {3: "three", 1: "one"}
    if attention in WITHOUT_CHANNELS and fitting(attention) != "mobilenetv3_small_050":
        with pytest.raises(UserError, match="no weights of channels"):
            weights.measure(attention, model, data(), chosen, each=2)
        return
    found = weights.measure(attention, model, data(), chosen, each=2, batch_size=3)
    assert found.classes == ["three", "one"]
    block = {label: i for i, label in enumerate(found.blocks)}
    with torch.no_grad():
        seen = trace.forward(model, torch.stack([data()[0, i][0] for i in (3, 11, 1, 9)]))
    for one in seen.blocks:
        if one.label in block:
            with torch.no_grad():
                profile = weights.channel_profile(one.readings())
            assert profile is not None
            expected = profile.double().unflatten(0, (2, 2)).mean(1).numpy()
            np.testing.assert_allclose(found.mean[block[one.label]], expected, rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(found.variance[:, block[one.label]], expected.var(1), rtol=1e-3, atol=1e-8)
    assert len(weights.table([found]).rows) == sum(m.size for m in found.mean)
    assert len(weights.draw([found, found]).axes) == 2 * len(found.blocks)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_histograms(attention: str, untouched: Any) -> None:
    model = network(attention)
    untouched(model)
    if attention in WITHOUT_WEIGHTS:
        with pytest.raises(UserError, match="no attention weights"):
            histograms.measure(attention, model, data(), [0, 1])
        return
    found = histograms.measure(attention, model, data(), [0, 1, 2], bins=10, batch_size=2)
    with torch.no_grad():
        seen = trace.forward(model, batch(3))
    read = {b.label: histograms.values(b.readings()) for b in seen.blocks}
    assert found.blocks == [label for label, value in read.items() if value is not None]
    for label, counts, outside in zip(found.blocks, found.counts, found.outside, strict=True):
        chosen = read[label]
        assert chosen is not None
        assert counts.sum() + outside == chosen[1].numel()
        assert outside == 0
    assert histograms.table([found]).rows[0][2] == found.blocks[0]
    assert histograms.draw([found]).axes


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_importance(attention: str) -> None:
    if attention not in BRIDGED:
        with pytest.raises(UserError, match="no bridge"):
            importance.measure(attention, network(attention), data(), [0, 1])
        return
    torch.manual_seed(0)
    slots = groups.load("attention", attention)
    slots["block"]["reduction"] = 2
    model = attn.create_model("resnet50", slots, 8, **SMALL)
    found = importance.measure(attention, model, data(), range(8), trees=3)
    assert found.importance.shape[1] == len(found.blocks) == len(found.fit)
    assert np.nanmax(found.importance, 0) == pytest.approx(np.ones(len(found.blocks)))
    assert importance.draw([found]).axes
    assert {row[1] for row in importance.table([found]).rows} == set(found.blocks)


def test_importance_is_that_of_the_layer_which_decides() -> None:
    generator = np.random.default_rng(0)
    layers = [generator.normal(size=(120, 4)) for _ in range(3)]
    weights_ = 1 / (1 + np.exp(-layers[1] @ generator.normal(size=(4, 16))))
    sums, explained = importance.importance(layers, weights_, trees=20)
    assert sums.sum() == pytest.approx(1)
    assert sums[1] > 0.8
    assert explained > 0.8


def test_fewer_coordinates_give_the_forest_of_all_channels() -> None:
    generator = np.random.default_rng(0)
    layers = [generator.normal(size=(60, 3)) for _ in range(2)]
    outputs = np.concatenate(layers, 1) @ generator.normal(size=(6, 40))
    plain = RandomForestRegressor(5, random_state=0).fit(np.concatenate(layers, 1), outputs).feature_importances_
    sums, _ = importance.importance(layers, outputs, trees=5, seed=0)
    np.testing.assert_allclose(sums, [plain[:3].sum(), plain[3:].sum()], atol=0.02)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_connections(attention: str) -> None:
    model = network(attention)
    if attention not in CONNECTED:
        with pytest.raises(UserError, match="no connection between attentions"):
            connections.measure(attention, model, SIDE)
        return
    found = connections.measure(attention, model, SIDE)
    names = {"dca_cbam": ["dca_cbam (channel)", "dca_cbam (spatial)"]}.get(attention, [attention])
    assert [one.name for one in found] == names
    for one in found:
        assert one.index.tolist() == [2, 3, 4]  # the first block's join is never used
        assert one.alpha.shape == (3, 2 if attention == "dca_sk" else 1)
        expected = (np.abs(one.beta) / (np.abs(one.alpha) + np.abs(one.beta))).mean(1)
        np.testing.assert_allclose(one.share, expected)
    assert connections.draw(found).axes
    assert len(connections.table(found).rows) == 3 * len(found)


def test_signs_do_not_cancel_in_a_contribution() -> None:
    model = build("resnet18", "dca_se")
    with torch.no_grad():
        for module in model.modules():
            if type(module).__name__ == "Connection":
                module.alpha_beta.copy_(torch.tensor([3.0, -1.0]))
    (found,) = connections.measure("dca", model, SIDE)
    assert found.share.tolist() == [0.25] * 3


PLACES = ["block input", "conv 1", "conv 2", "conv 3", "block output"]


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_gradcam(attention: str, untouched: Any) -> None:
    model, x = network(attention), batch()
    untouched(model)
    found = gradcam.measure(attention, model, x, ["2.1"], inside=True)
    wide = fitting(attention) == "resnet50"
    assert found.places == (PLACES if wide else [*PLACES[:3], PLACES[4]])
    assert found.maps.shape == (len(found.places), 2, SIDE, SIDE)
    assert found.maps.min() >= 0
    assert found.maps.max() <= 1
    shown = [Picture(str(i), None, x[i], np.zeros((SIDE, SIDE, 3))) for i in range(2)]
    names = [str(i) for i in range(8)]
    assert len(gradcam.draw([found], shown, names).axes) == 2 * (1 + len(found.places))
    assert len(gradcam.table([found], shown, names).rows) == 2 * len(found.places)


def test_gradcam_explains_the_class_it_is_asked_for() -> None:
    model, x = network("se"), batch()
    first, other = (gradcam.measure("se", model, x, target=torch.tensor([k, k])) for k in (0, 5))
    assert other.target.tolist() == [5, 5]
    assert not np.allclose(first.maps, other.maps)


@pytest.mark.parametrize("attention", ["ba", "dca_se", "sk"])
@pytest.mark.parametrize(("place", "module"), [("block 3.1", "layer3.0.act{}"), ("block 4.1", "layer4.0.act{}")])
def test_gradcam_agrees_with_the_package(attention: str, place: str, module: str) -> None:
    package = pytest.importorskip("pytorch_grad_cam")
    model, x = build("resnet50", attention).eval(), batch()
    own = gradcam.measure(attention, model, x, [place.removeprefix("block ")])
    with package.GradCAM(model, [model.get_submodule(module.format(3))]) as reference:
        expected = reference(x, targets=None)
    np.testing.assert_allclose(own.maps[0], expected, atol=1e-3)


def test_gradcam_is_its_equation() -> None:
    activation, gradient = torch.randn(2, 5, 4, 4), torch.randn(2, 5, 4, 4)
    heat = torch.zeros(2, 4, 4)
    for n in range(2):
        for c in range(5):
            heat[n] += gradient[n, c].mean() * activation[n, c]
    heat = heat.clamp(min=0)
    expected = heat - heat.amin((1, 2), keepdim=True)
    expected = expected / expected.amax((1, 2), keepdim=True)
    torch.testing.assert_close(gradcam.cam(activation, gradient, (4, 4)), expected, rtol=1e-4, atol=1e-5)


def test_places_that_do_not_exist_are_named() -> None:
    model, x = network("ba"), batch()
    with pytest.raises(UserError, match=r"at=9: unknown stage '9'.*choose from 1, 2, 3, 4"):
        gradcam.measure("ba", model, x, ["9"])
    with pytest.raises(UserError, match=r"at=1\.7: unknown block"):
        maps.measure("ba", model, x, "1.7")
    with pytest.raises(UserError, match="name one"):
        gradcam.measure("ba", model, x, ["1.1", "2.1"], inside=True)
    with pytest.raises(UserError, match="channels=999"):
        maps.measure("ba", model, x, "1.1", [999])
    with pytest.raises(UserError, match="no block of convolutions"):
        gradcam.measure("vit", member("vit", "dca_se"), x, ["1.1"], inside=True)
    with pytest.raises(UserError, match="class token alone"):
        gradcam.measure("vit", member("vit", None), x, ["1.2"])


@pytest.mark.parametrize("attention", ["none", "ba", "aa", "bam"])
def test_maps_embedding_and_confusion(attention: str, untouched: Any) -> None:
    model, x = network(attention), batch()
    untouched(model)
    shown = maps.measure(attention, model, x, "2", [1, 0])
    with torch.no_grad():
        expected = model.layer2(model.layer1((model.maxpool(model.stem(x)), (None, None))))[0]
    np.testing.assert_allclose(shown.maps, expected[:, [1, 0]].numpy(), rtol=1e-4, atol=1e-5)
    assert maps.measure(attention, model, x).maps.shape[1] == 8
    pictures = [Picture(str(i), None, x[i], np.zeros((SIDE, SIDE, 3))) for i in range(2)]
    assert len(maps.draw([shown], pictures).axes) == 6
    assert len(maps.table([shown], pictures).rows) == shown.maps.size

    embedded = embedding.measure(attention, model, data(), {0: "a", 1: "b", 2: "c"}, each=2)
    assert embedded.points.shape == (6, 2)
    assert embedded.label.tolist() == [0, 0, 1, 1, 2, 2]
    again = embedding.measure(attention, model, data(), {0: "a", 1: "b", 2: "c"}, each=2)
    assert np.array_equal(embedded.points, again.points)
    assert -1 <= embedded.silhouette <= 1
    assert len(embedding.draw([embedded]).axes) == 1
    assert len(embedding.table([embedded]).rows) == 6

    outcome = confusion.measure(attention, model, data(), range(16), 8, batch_size=5)
    with torch.no_grad():
        logits = model(batch(16))
    assert outcome.guess.tolist() == logits.argmax(1).tolist()
    assert outcome.label.tolist() == [i % 8 for i in range(16)]
    assert outcome.matrix.sum() == 16
    captions = [[(np.zeros((4, 4, 3)), "a as b")]]
    assert confusion.draw([outcome], [str(i) for i in range(8)], captions).subfigs
    assert confusion.table([outcome], [str(i) for i in range(8)]).rows


def test_calibration_and_mistakes_are_counted() -> None:
    label, guess = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 0])
    confidence = np.array([0.95, 0.9, 0.6, 0.55])
    matrix = np.array([[1, 1], [1, 1]])
    found = confusion.Outcome("a", label, guess, confidence, np.arange(4), matrix)
    assert found.accuracy() == 50
    assert found.class_accuracy().tolist() == [50, 50]
    assert found.mistakes(5).tolist() == [1, 3]
    # Bins of a half: (0.5, 1] holds all four, of which half are right.
    assert found.calibration_error(2) == pytest.approx(abs(0.5 - confidence.mean()))
    # Bins of a tenth: 0.95 alone in (0.9, 1], 0.9 alone in (0.8, 0.9], the others in (0.5, 0.6].
    assert found.calibration_error(10) == pytest.approx((abs(1 - 0.95) + 0.9 + 2 * abs(0.5 - 0.575)) / 4)


def test_classes_are_chosen_by_name_label_or_the_papers() -> None:
    names = ["cat", "dog", *images.PAPER_CLASSES]
    assert images.choose_classes([], names, 6) == dict(zip((2, 3, 4, 5), images.PAPER_CLASSES.values(), strict=True))
    assert images.choose_classes(["dog", "castle", "0"], names, 6) == {1: "dog", 3: "castle", 0: "cat"}
    assert images.choose_classes([], ["a", "b"], 2) == {0: "a", 1: "b"}
    assert images.choose_classes(["1"], None, 2) == {1: "class 1"}
    with pytest.raises(UserError, match="unknown class 'dgo': did you mean 'dog'"):
        images.choose_classes(["dgo"], names, 6)
    with pytest.raises(UserError, match="no image with the label 7"):
        images.of_classes(np.array([0, 1]), [7], 3)
