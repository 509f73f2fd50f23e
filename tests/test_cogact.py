"""CogACT: the manifest, loading and its refusals, the cognition row, the chunk, every required method."""

import json

import golden
import numpy as np
import pytest
import torch
from doubles import calibrated
from manifests import manifest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaModel

from vlaprune import config
from vlaprune.benchmark import Observation
from vlaprune.meter import Clock
from vlaprune.methods.dense import Dense
from vlaprune.models.cogact import PICTURES, CogACT, weight_map
from vlaprune.models.prismatic import EMPTY, STOP, format_prompt
from vlaprune.policy import Policy
from vlaprune.session import Session

SIZES = {
    "image": 56, "dino_width": 32, "dino_depth": 3, "dino_heads": 2, "siglip_width": 32, "siglip_depth": 3,
    "siglip_heads": 2, "siglip_ffn": 48, "width": 32, "layers": 6, "heads": 2, "ffn": 48,
}  # fmt: skip
SMALL = {"sizes": SIZES, "head": "DiT-tiny", "device": "cpu", "dtype": "float32"}
TEXT = "Put the spoon on the towel"


@pytest.fixture(scope="module")
def model():
    return CogACT(weights="random", **SMALL)


def look(image=None, instruction=TEXT, seed=0):
    if image is None:
        image = np.random.default_rng(seed).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    return Observation({"primary": image}, None, instruction)


def act(model, *looks, seed=3, make=Dense):
    policy = Policy(model, make, len(looks))
    for slot in range(len(looks)):
        policy.reset(slot, seed)
    return list(policy.act(dict(enumerate(looks))).values())


# -- the manifest


@pytest.mark.parametrize(("head", "parameters"), [("DiT-S", 7.5537e9), ("DiT-B", 7.6302e9), ("DiT-L", 7.8490e9)])
def test_every_tensor_of_the_checkpoint_has_its_place_at_full_size(head, parameters):
    model = CogACT(weights="random", head=head, device="meta")
    own = dict(model.trunk.named_parameters())
    shapes = {key: piece.shape(own[piece.name]) for key, piece in weight_map(model.trunk).items()}
    shapes |= {f"action_model.{key}": tuple(p.shape) for key, p in model.action.named_parameters()}
    assert {p.name for p in weight_map(model.trunk).values()} == own.keys()
    published = manifest("cogact")
    unread = {k for k in published if k.startswith(model.unused)}
    total = sum(np.prod(s) for s in shapes.values()) + sum(np.prod(published[k]) for k in unread)
    assert total == pytest.approx(parameters, rel=1e-4)
    if head == "DiT-B":
        assert shapes == {k: s for k, s in published.items() if k not in unread}
        assert {k.split(".")[2] for k in unread if "llm" not in k} == {"blocks", "norm", "attn_pool"}


# -- what the trunk sees and where it is read


def test_the_prompt_ends_in_the_empty_and_the_end_token(model):
    asked = []
    session = Session(Dense(), model.info, model.decoder.config, Clock())
    handle = model.trunk.embedding.register_forward_pre_hook(lambda module, args: asked.append(args[0].tolist()))
    try:
        model.predict([look()], [session])
    finally:
        handle.remove()
    words = model.tokenize("In: What action should the robot take to put the spoon on the towel?\nOut:")
    assert asked == [[*words, EMPTY, STOP]]
    layout, side = session.trace.layout, SIZES["image"] // 14
    assert (layout.visual, layout.length) == (range(1, 1 + side**2), side**2 + len(words) + 2)
    assert layout.action == range(layout.length - 1, layout.length) and layout.last == layout.length - 1
    assert layout.text == range(1 + side**2, layout.length - 1)


def test_the_cognition_feature_is_the_last_row_of_transformers_llama(model, parity):
    seen, told = [], []
    see, model.trunk.encode_images = model.trunk.encode_images, lambda *a: seen.append(see(*a)) or seen[0]
    handle = model.action.register_forward_pre_hook(lambda module, args: told.append(args))
    try:
        (actions,) = act(model, look())
    finally:
        del model.trunk.encode_images
        handle.remove()
    feature, noise = told[0]
    llama = LlamaModel(
        LlamaConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=6, num_attention_heads=2, rms_norm_eps=1e-5,
            vocab_size=8,
        )
    ).eval()  # fmt: skip
    own, state = dict(model.trunk.decoder.named_parameters()), llama.state_dict()
    for i in range(6):
        a, b = f"layers.{i}.", f"blocks.{i}."
        for n, part in zip("qkv", own[f"{b}qkv.weight"].chunk(3), strict=True):
            state[f"{a}self_attn.{n}_proj.weight"] = part
        for n, part in zip(("gate", "up"), own[f"{b}gate_up.weight"].chunk(2), strict=True):
            state[f"{a}mlp.{n}_proj.weight"] = part
        state[f"{a}self_attn.o_proj.weight"], state[f"{a}mlp.down_proj.weight"] = (
            own[f"{b}out.weight"],
            own[f"{b}down.weight"],
        )
    llama.load_state_dict(state)
    words = model.trunk.embed([*model.tokenize(format_prompt(TEXT)), EMPTY, STOP])
    with torch.inference_mode():
        rows = llama(inputs_embeds=torch.cat((words[:1], seen[0][0], words[1:]))[None]).last_hidden_state
        unit = model.action(feature, noise)[0].clamp(-1, 1)
    parity("cogact", "dense: cognition feature, last row of transformers' Llama", feature, rows[:, -1], 1e-5)
    assert np.allclose(actions[:, :6], unit[:, :6].numpy(), atol=1e-6)


def test_the_picture_changes_the_action(model):
    black, white = (act(model, look(np.full((48, 64, 3), level, np.uint8)))[0] for level in (0, 255))
    assert np.abs(black - white).max() > 1e-2


def test_the_whole_frame_is_squeezed_to_a_square(model):
    image = np.zeros((48, 64, 3), np.uint8)
    image[:, 32:] = 255
    small = PICTURES.whole(image, model.trunk.sizes.image)
    assert small.shape == (56, 56, 3) and small[:, :26].max() == 0 and small[:, 30:].min() == 255
    assert np.array_equal(PICTURES.whole(small, model.trunk.sizes.image), small)


# -- the chunk


def test_noise_is_a_function_of_the_episode_and_the_call(model):
    policy = Policy(model, Dense)
    policy.reset(0, 5)
    first, second = (policy.act({0: look()})[0] for _ in range(2))
    policy.reset(0, 5)
    assert np.array_equal(policy.act({0: look()})[0], first) and not np.array_equal(first, second)
    assert not np.array_equal(act(model, look(), seed=6)[0], first)


def test_sequences_of_different_length_share_a_call(model):
    looks = [look(seed=1), look(seed=2, instruction="close the drawer")]
    for alone, together in zip([act(model, one)[0] for one in looks], act(model, *looks), strict=True):
        assert np.allclose(alone, together, atol=1e-4)


def test_gripper_is_one_or_zero_and_the_rest_within_the_training_range(model):
    (actions,) = act(model, look())
    assert actions.shape == (16, 7) and set(actions[:, 6]) <= {0.0, 1.0} and np.abs(actions[:, :6]).max() <= 1


@pytest.mark.parametrize("wrong", [{"head": "DiT-XL"}, {"cameras": ["a", "b"]}, {"steps": 60}, {"sizes": {"no": 1}}])
def test_wrong_options_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        CogACT(weights="random", **SMALL | wrong)


# -- loading


def tokenizer(folder):
    """A tokenizer.json with the ids that Llama-2's has."""
    words = {"<unk>": 0, "<s>": 1, "</s>": 2, "\u2581": EMPTY}
    words |= {w: 100 + i for i, w in enumerate(sorted(set(format_prompt(TEXT).split())))}
    made = Tokenizer(models.WordLevel(words, "<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    folder.mkdir()
    made.save(str(folder / "tokenizer.json"))
    return str(folder)


def native(model):
    """A model's tensors under the names of a checkpoint, with some that nothing reads."""
    own, out = dict(model.trunk.named_parameters()), {}
    for key, piece in weight_map(model.trunk).items():
        rows = slice(None) if piece.rows is None else slice(*piece.rows)
        out[key] = own[piece.name][rows].reshape(piece.shape(own[piece.name])).clone()
    out |= {f"action_model.{name}": tensor for name, tensor in model.action.state_dict().items()}
    unread = {"vision_backbone.dino_featurizer.norm.weight": torch.zeros(32)}
    return out | unread | {"llm_backbone.llm.lm_head.weight": torch.zeros(4, 32)}


def run_folder(folder, tensors):
    """A run as its authors' code writes it, from tensors by name."""
    tree = {}
    for key, tensor in tensors.items():
        part, _, name = key.partition(".")
        tree.setdefault(part, {})[name] = tensor
    (folder / "checkpoints").mkdir(parents=True)
    torch.save({"model": tree}, folder / "checkpoints" / "it.pt")
    (folder / "config.json").write_text(json.dumps({"vla": {"base_vlm": "prism-dinosiglip-224px+7b"}}))
    numbers = {"q01": [-2.0] * 7, "q99": [0.0] * 5 + [2.0, 5.0], "mask": [True] * 6 + [False]}
    (folder / "dataset_statistics.json").write_text(json.dumps({"bridge_orig": {"action": numbers}}))
    return folder


@pytest.fixture
def files(tmp_path, model):
    return run_folder(tmp_path / "run", native(model)), tokenizer(tmp_path / "words")


def loaded(files, **options):
    return CogACT(weights=str(files[0]), tokenizer=files[1], **SMALL | {"unnorm": "bridge_orig"} | options)


def test_a_native_run_folder_or_its_file_loads_and_gives_actions_their_unit(files, model):
    (actions,) = act(loaded(files), look())
    assert np.array_equal(act(loaded((files[0] / "checkpoints" / "it.pt", files[1])), look())[0], actions)
    plain = CogACT(weights="random", **SMALL)
    plain.tokenize = loaded(files).tokenize
    (unit,) = act(plain, look())
    assert np.allclose(actions[:, :5], unit[:, :5] - 1) and np.allclose(actions[:, 5], 2 * unit[:, 5])
    assert np.array_equal(actions[:, 6], unit[:, 6])  # the mask leaves the gripper as it is


def test_the_trunk_is_cast_and_the_head_stays_in_fp32(files):
    made = loaded(files, dtype="bfloat16")
    assert made.trunk.embedding.weight.dtype == torch.bfloat16
    assert {p.dtype for p in made.action.parameters()} == {torch.float32}
    assert np.isfinite(act(made, look())[0]).all()


def test_averaged_weights_are_taken_only_when_told(tmp_path, model):
    other = CogACT(weights="random", seed=1, **SMALL)
    averaged = {f"ema_diffusion.{name}": tensor for name, tensor in other.action.state_dict().items()}
    files = run_folder(tmp_path / "run", native(model) | averaged), tokenizer(tmp_path / "words")
    for ema, source in ((False, model), (True, other)):
        state = loaded(files, ema=ema).action.state_dict()
        assert all(torch.equal(state[k], v) for k, v in source.action.state_dict().items())


def test_a_checkpoint_is_checked_on_the_meta_device_without_reading_a_weight(files):
    assert loaded(files, device="meta").trunk.embedding.weight.is_meta


def damaged(files, what):
    run = files[0]
    match what:
        case "no checkpoint":
            (run / "checkpoints" / "it.pt").unlink()
        case "two":
            (run / "checkpoints" / "older.pt").write_bytes(b"")
        case "torn":
            file = run / "checkpoints" / "it.pt"
            file.write_bytes(file.read_bytes()[:9000])
        case "statistics":
            (run / "dataset_statistics.json").unlink()
        case "base":
            (run / "config.json").write_text('{"vla": {"base_vlm": "siglip-224px"}}')
        case "words":
            (run.parent / "words" / "tokenizer.json").unlink()


@pytest.mark.parametrize(
    ("what", "options", "shown"),
    [
        ("no checkpoint", {}, "has .pt files []; there must be one"),
        ("two", {}, "has .pt files ['it.pt', 'older.pt']"),
        ("torn", {}, "cannot be read"),
        ("statistics", {}, "has no dataset_statistics.json"),
        ("base", {}, "names vla.base_vlm siglip-224px"),
        ("words", {}, "tokenizer.json cannot be read"),
        ("", {"unnorm": None}, "unnorm is not set"),
        ("", {"unnorm": "fractal20220817_data"}, "has no statistics 'fractal20220817_data'; it has ['bridge_orig']"),
        ("", {"head": "DiT-S"}, "does not fit Diffusion; it lacks"),
        ("", {"chunk": 8}, "net.positional_embedding (17, 32) instead of (9, 32)"),
        ("", {"ema": True}, "has no averaged weights (ema_diffusion.*)"),
        ("", {"sizes": SIZES | {"layers": 5}}, "has besides 9 tensors: ['llm_backbone.llm.model.layers.5."),
    ],
)
def test_what_does_not_fit_is_named_in_one_line(files, what, options, shown):
    damaged(files, what)
    with pytest.raises(ValueError) as error:
        loaded(files, **options)
    assert shown in str(error.value) and "\n" not in str(error.value)


# -- parity


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """The model that the golden answers were recorded from, through a run folder on disk."""
    folder = tmp_path_factory.mktemp("theirs")
    sizes = {"sizes": golden.COGACT, "head": "DiT-tiny"}
    empty = CogACT(weights="random", **sizes, device="meta")
    own = dict(empty.trunk.named_parameters())
    shapes = {key: piece.shape(own[piece.name]) for key, piece in weight_map(empty.trunk).items()}
    shapes |= {f"action_model.{name}": tuple(p.shape) for name, p in empty.action.named_parameters()}
    made = {key: torch.from_numpy(array) for key, array in golden.weights(shapes).items()}
    run = run_folder(folder / "run", made)
    out = CogACT(str(run), "bridge_orig", tokenizer(folder / "words"), **SMALL | sizes)
    out.tokenize = golden.words
    return out


@pytest.mark.parametrize("seed", [1, 2])
def test_it_answers_what_microsofts_code_answers(theirs, seed, monkeypatch, parity):
    said = {k.removesuffix(f"_{seed}"): v for k, v in golden.load("cogact").items() if k.endswith(str(seed))}
    monkeypatch.setattr(theirs, "_noise", lambda sessions: torch.from_numpy(said["noise"])[None])
    head = []
    handle = theirs.action.register_forward_hook(lambda module, given, out: head.append((given[0], out)))
    try:
        (actions,) = act(theirs, look(golden.scene(seed, 48, 64), "Close the DRAWER"))
    finally:
        handle.remove()
    feature, chunk = (rows[0] for rows in head[0])
    what = f"dense, picture {seed}: {{}} of microsoft/CogACT, recorded".format
    parity("cogact", what("cognition feature"), feature, said["feature"], 1e-4)
    parity("cogact", what("sampled chunk"), chunk, said["chunk"], 1e-4)
    parity("cogact", what("actions"), actions, theirs.range.restore(said["unit"]), 1e-4)


# -- the command line


@pytest.mark.parametrize("method", ["dense", "ties", "infoentropy", "vlapruner", "safe", "lightvla"])
def test_every_required_method_prunes_it_in_the_toy_world(composed, method):
    built, make, bench = config.build(composed("model=cogact_tiny", f"method={method}"))
    policy = Policy(built, calibrated(make, built.info, built.layout(9).total))
    task = bench.tasks()[0]
    with bench.open(task) as world:
        world.reset(0)
        for _ in range(4):
            for action in policy.act({0: world.observe()})[0][:2]:
                world.step(action)
    records = policy.drain(0)
    assert len(records) == 4 and all(len(r.rows) == 6 for r in records)
    fewest = min(min(r.visual) for r in records)
    assert fewest == records[0].total if method == "dense" else fewest < records[0].total


@pytest.mark.parametrize(("robot", "dataset"), [("google_robot", "fractal20220817_data"), ("widowx", "bridge_orig")])
def test_the_robot_decides_the_unit_of_actions(composed, robot, dataset):
    cfg = composed("model=cogact")
    assert config.model_node(cfg, robot).unnorm == dataset
    assert config.model_node(composed("model=cogact", "model.unnorm=mine"), robot).unnorm == "mine"
    assert config.make("control", cfg.robots[robot].control).ensemble in (2, 7)
