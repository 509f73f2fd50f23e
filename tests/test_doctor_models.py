"""The doctor on whole and on damaged checkpoints of every model, at reduced sizes."""

import pytest
import test_cogact
import test_oft
import test_openvla
import test_pi05

from vlaprune.doctor.checks import models
from vlaprune.models.cogact import CogACT
from vlaprune.models.oft import OFT
from vlaprune.models.openvla import OpenVLA
from vlaprune.models.pi0 import Pi05


def openvla(folder):
    test_openvla.publish(OpenVLA("random", sizes=test_openvla.SMALL, device="cpu", dtype="float32"), folder)
    return {"weights": str(folder), "suite": "libero_spatial", "sizes": test_openvla.SMALL}, "model.safetensors"


def oft(folder):
    test_oft.publish_oft(OFT(**test_oft.OPTIONS), folder)
    options = {"suite": "libero_spatial", "sizes": test_openvla.SMALL}
    return {"weights": str(folder), **options}, "action_head--150000_checkpoint.pt"


def cogact(folder):
    test_cogact.run_folder(folder / "run", test_cogact.native(CogACT("random", **test_cogact.SMALL)))
    words = test_cogact.tokenizer(folder / "words")
    options = {"unnorm": "bridge_orig", "tokenizer": words, **test_cogact.SMALL}
    return {"weights": str(folder / "run"), **options}, "run/checkpoints/it.pt"


def pi05(folder):
    test_pi05.saved(folder, Pi05(**test_pi05.OPTIONS))
    return {**test_pi05.LOADED, "weights": str(folder), "tokenizer": str(folder)}, "model.safetensors"


@pytest.mark.parametrize(("kind", "make"), [(OpenVLA, openvla), (OFT, oft), (CogACT, cogact), (Pi05, pi05)])
def test_a_whole_checkpoint_would_load_and_a_damaged_one_says_why(kind, make, tmp_path):
    options, file = make(tmp_path)
    node = {**options, "_target_": f"{kind.__module__}.{kind.__name__}", "device": "auto"}
    assert models.model(node)[:2] == (f"{options['weights']} is complete and would load", True)

    whole = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(whole[: len(whole) // 2])
    said, fine, _ = models.model(node)
    assert not fine and "cannot be read" in said and "truncated" in said and file.rpartition("/")[2] in said

    (tmp_path / file).write_bytes(whole)
    said, fine, _ = models.model(node | {"sizes": {**options["sizes"], "layers": 3}})
    assert not fine and ("has besides" in said or "other shapes" in said) and "\n" not in said
