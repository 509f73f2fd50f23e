"""Checkpoints on disk: what is read, what is refused and in which words, and what loading costs in memory."""

import json
import math
import os
import subprocess
import sys

import pytest
import torch
from manifests import manifest
from safetensors.torch import save_file
from torch import nn

from vlaprune.models.prismatic import Prismatic, Sizes, unused, weight_map
from vlaprune.nn.checkpoint import Checkpoint, check_companions
from vlaprune.nn.hub import locate
from vlaprune.nn.load import fill
from vlaprune.nn.weights import WeightMap, fits, load_weights, randomise


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.both = nn.Linear(4, 6, bias=False)
        self.row = nn.Parameter(torch.zeros(3))


WEIGHTS = {"a": WeightMap("both.weight", (0, 2)), "b": WeightMap("both.weight", (2, 6)), "c": WeightMap("row", fold=2)}


def tensors():
    torch.manual_seed(0)
    return {"a": torch.randn(2, 4), "b": torch.randn(4, 4), "c": torch.randn(1, 1, 3)}


def empty():
    with torch.device("meta"):
        return Net()


def sharded(folder, state, shards=2):
    keys, names = list(state), {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        own = {k: state[k] for k in keys[i::shards]}
        save_file(own, folder / file)
        names |= dict.fromkeys(own, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return folder


def single(folder, state):
    save_file(state, folder / "model.safetensors")
    return folder


def pickled(folder, state):
    torch.save({"model": {"part": state}, "step": 3}, folder / "it.pt")
    return folder / "it.pt"


@pytest.mark.parametrize(
    ("write", "within", "strip"), [(sharded, None, ""), (single, None, ""), (pickled, "model", "part.")]
)
def test_every_kind_of_file_pours_the_same_weights(tmp_path, write, within, strip):
    state = tensors()
    checkpoint = Checkpoint(write(tmp_path, state), within, strip)
    assert checkpoint.shapes == {k: tuple(v.shape) for k, v in state.items()} and len(checkpoint.digest) == 64
    net = empty()
    load_weights(net, checkpoint, WEIGHTS, dtype=torch.float32)
    assert torch.equal(net.both.weight, torch.cat((state["a"], state["b"]))) and torch.equal(net.row, state["c"][0, 0])


def test_weights_take_the_dtype_that_is_asked_for(tmp_path):
    net = empty()
    load_weights(net, Checkpoint(single(tmp_path, tensors())), WEIGHTS)
    assert net.both.weight.dtype == torch.bfloat16 and torch.equal(net.row, tensors()["c"][0, 0].bfloat16())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop("b"), r"lacks 1 tensors: \['b'\]"),
        (lambda s: s.update(d=torch.zeros(1), e=torch.zeros(1)), r"has besides 1 tensors: \['d'\]"),
        (
            lambda s: s.update(a=torch.zeros(4, 2)),
            r"has in other shapes 1 tensors: \['a \(4, 2\) instead of \(2, 4\)'\]",
        ),
        (lambda s: (s.clear(), s.update(x=torch.zeros(2))), r"another model's: it has none of the 3 .*'x'"),
    ],
)
def test_what_does_not_fit_is_named_in_one_line_and_nothing_is_loaded(tmp_path, change, said):
    state, net = tensors(), empty()
    change(state)
    with pytest.raises(ValueError, match=said) as caught:
        load_weights(net, Checkpoint(single(tmp_path, state)), WEIGHTS, unused=("e",))
    assert "\n" not in str(caught.value) and net.row.is_meta


def test_a_missing_shard_is_named(tmp_path):
    sharded(tmp_path, tensors())
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match=r"lacks \['model-00002-of-00002.safetensors'\] of the 2 that .*index.json"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("write", [sharded, single, pickled])
@pytest.mark.parametrize("keep", [0, 0.5, 0.98])
def test_a_truncated_file_is_named(tmp_path, write, keep):
    path = write(tmp_path, {k: v.repeat(50, 1, 1) for k, v in tensors().items()})
    file = path if path.is_file() else max(path.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * keep)])
    with pytest.raises(ValueError, match=f"{file.name} cannot be read .*truncated") as caught:
        Checkpoint(path)
    assert "\n" not in str(caught.value)


def test_what_is_no_checkpoint_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match=r"neither model.safetensors nor .*; it has \['notes.txt'\]"):
        Checkpoint(tmp_path)
    with pytest.raises(ValueError, match="does not exist"):
        Checkpoint(tmp_path / "none")
    torch.save({"model": tensors()}, tmp_path / "it.pt")
    with pytest.raises(ValueError, match=r"has no entry 'net'; it has \['model'\]"):
        Checkpoint(tmp_path / "it.pt", "net")
    torch.save({"model": print}, tmp_path / "bad.pt")
    with pytest.raises(ValueError, match="holds more than tensors"):
        Checkpoint(tmp_path / "bad.pt")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["params/_METADATA"], "holds openpi's JAX weights .*convert_jax_model_to_pytorch.py of openpi"),
        (["checkpoints/it.pt"], "holds Prismatic's training weights .*convert_openvla_weights_to_hf.py"),
        (["adapter_model.safetensors"], "holds a LoRA adapter that is not merged .*merge it into its base first"),
        (
            ["lora_adapter/adapter_model.safetensors"],
            "LoRA adapter that is not merged .*merge_lora_weights_and_save.py",
        ),
        (["pytorch_model.bin"], "holds pickled weights .*safe_serialization"),
    ],
)
def test_a_folder_in_another_format_names_what_converts_it(tmp_path, files, said):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ValueError, match=said) as caught:
        Checkpoint(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("index", [{"weight_map": []}, {"weight_map": {"a": 3}}, {}, {"weight_map": {}}])
def test_an_index_without_a_map_is_named(tmp_path, index):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"index.json has no weight_map|lacks every shard"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("write", [sharded, single])
def test_weights_that_are_not_finite_are_named(tmp_path, write, wrong):
    state = tensors()
    state["b"][3, 1] = wrong
    with pytest.raises(ValueError, match=r"not finite in 1 tensors: \['b'\]; they are damaged"):
        load_weights(empty(), Checkpoint(write(tmp_path, state)), WEIGHTS)


def test_weights_too_large_for_the_dtype_are_named(tmp_path):
    state = tensors()
    state["a"][0, 0] = 7e4
    checkpoint = Checkpoint(single(tmp_path, state))
    load_weights(empty(), checkpoint, WEIGHTS, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"\['a'\]; they are damaged, or too large for this dtype"):
        load_weights(empty(), checkpoint, WEIGHTS, dtype=torch.float16)


def test_two_tensors_of_one_name_are_refused(tmp_path):
    single(tmp_path, {"model.a": torch.zeros(1), "a": torch.ones(1)})
    with pytest.raises(ValueError, match="has two tensors a; keep one"):
        Checkpoint(tmp_path, strip="model.")
    torch.save({"module.a": torch.zeros(1), "a": torch.ones(1)}, tmp_path / "it.pt")
    with pytest.raises(ValueError, match="has two tensors a; keep one"):
        Checkpoint(tmp_path / "it.pt", strip="module.")


def test_our_own_weights_are_refused_with_a_nan(tmp_path):
    own = nn.Linear(2, 2)
    own.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"weights here have numbers that are not finite in 1 tensors: \['weight'\]"):
        fill(nn.Linear(2, 2), own.state_dict(), "here")


@pytest.mark.parametrize(
    ("beside", "said"),
    [
        ("vision_backbone--9_checkpoint.pt", r"which openvla does not read; they are FiLM layers of OpenVLA-OFT\+"),
        ("action_head--9_checkpoint.pt", "they are OpenVLA-OFT's: use model=oft model.head=l1"),
        ("proprio_projector--9_checkpoint.pt", "use model=oft model.state=eef_pos3"),
        ("adapter_model.safetensors", "it is a LoRA adapter: merge it"),
        ("something.pt", "has something.pt, which openvla does not read; take them out"),
    ],
)
def test_a_companion_that_nobody_reads_is_refused_by_name(tmp_path, beside, said):
    single(tmp_path, tensors())
    for name in (beside, "optimizer.pt", "training_args.bin", "rng_state_0.pth", "config.json"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ValueError, match=said):
        check_companions(tmp_path, (), "openvla")
    check_companions(tmp_path, (beside,), "openvla")


def test_a_hub_that_is_not_there_ends_in_one_line_that_says_what_to_do(monkeypatch, tmp_path):
    assert locate(str(tmp_path)) == tmp_path
    with pytest.raises(ValueError, match="weights no/such/folder do not exist; give a folder"):
        locate("no/such/folder")
    import huggingface_hub

    def offline(name, revision, allow_patterns):
        raise ConnectionError("no\nroute")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(ValueError, match=r"hub cannot be reached .*no route.*hf download a/b --local-dir") as caught:
        locate("a/b@main")
    assert "\n" not in str(caught.value)


def test_a_gated_or_private_repository_is_told_apart(monkeypatch):
    import httpx
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    for error, said in ((GatedRepoError, "is gated: accept its terms"), (RepositoryNotFoundError, "check the name")):

        def refuse(name, revision, allow_patterns, error=error):
            raise error("no", response=httpx.Response(403, request=httpx.Request("GET", "http://hub")))

        monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
        with pytest.raises(ValueError, match=said):
            locate("a/b")


def test_random_weights_are_a_function_of_seed_and_name():
    one, two, other = (empty() for _ in range(3))
    for net, seed in ((one, 1), (two, 1), (other, 2)):
        randomise(net, seed, "cpu", torch.float32)
    assert torch.equal(one.both.weight, two.both.weight) and not torch.equal(one.both.weight, other.both.weight)
    assert torch.equal(one.row, torch.ones(3))


# OpenVLA at full size, on the meta device


@pytest.fixture(scope="module")
def trunk():
    with torch.device("meta"):
        return Prismatic(Sizes(), causal=True)


class Listed:
    """A checkpoint of which only names and shapes are known."""

    path = "openvla-7b"

    def __init__(self, shapes):
        self.shapes = shapes


def test_every_tensor_of_openvla_has_its_place_and_none_is_left_over(trunk):
    tensors = manifest("openvla")
    assert len(tensors) == 982
    assert sum(math.prod(s) for s in tensors.values()) == pytest.approx(7.5412e9, rel=1e-5)
    taken = weight_map(trunk)
    fits(trunk, Listed(tensors), taken, unused(trunk))
    passed_over = tensors.keys() - taken.keys()
    assert {k.split("featurizer.")[1].split(".")[0] for k in passed_over} == {"blocks", "norm", "attn_pool"}
    filled = sum(p.numel() for p in trunk.parameters())
    assert filled == sum(math.prod(s) for k, s in tensors.items() if k not in passed_over)


def test_a_tensor_of_openvla_that_is_missing_or_too_much_is_named(trunk):
    tensors = manifest("openvla")
    del tensors["language_model.model.layers.7.mlp.up_proj.weight"]
    tensors["language_model.model.layers.32.mlp.up_proj.weight"] = (11008, 4096)
    with pytest.raises(ValueError, match=r"lacks 1 tensors: .*layers\.7\.mlp.*besides 1 tensors: .*layers\.32"):
        fits(trunk, Listed(tensors), weight_map(trunk), unused(trunk))


MEMORY = """
import sys, torch
from torch import nn
from vlaprune.nn.checkpoint import Checkpoint, check_companions
from vlaprune.nn.weights import WeightMap, load_weights
def status(*names):
    lines = dict(line.split(":") for line in open("/proc/self/status"))
    return [int(lines[n].split()[0]) / 1024 for n in names]
count, width = int(sys.argv[2]), int(sys.argv[3])
with torch.device("meta"):
    net = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(count))
before, peaks = status("RssAnon")[0], []
class Watching(Checkpoint):
    def tensor(self, key):
        peaks.append(status("RssAnon", "RssFile"))
        return super().tensor(key)
load_weights(net, Watching(sys.argv[1]), {f"{i}": WeightMap(f"{i}.weight") for i in range(count)})
peaks.append(status("RssAnon", "RssFile"))
print(max(p[0] for p in peaks) - before, max(p[1] for p in peaks), status("VmHWM")[0])
"""


def test_loading_holds_the_module_once_in_its_own_dtype(tmp_path):
    """128 MB of fp32 in four shards become 64 MB of bf16: private memory grows by that and two tensors, not a copy."""
    count, width = 8, 2048
    sharded(tmp_path, {f"{i}": torch.full((width, width), float(i)) for i in range(count)}, 4)
    said = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path), str(count), str(width)],
        capture_output=True,
        text=True,
        env=dict(os.environ),
        check=True,
    )
    grown, mapped, peak = map(float, said.stdout.split())
    module, tensor = count * width * width * 2 / 2**20, width * width * 4 / 2**20
    assert module * 0.9 < grown < module + 2.5 * tensor, (grown, mapped, peak)
