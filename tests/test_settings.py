from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zarrmask.errors import SettingsError
from zarrmask.settings import Settings, read_settings
from zarrmask.shipped import CONFIGS


def test_defaults():
    settings = read_settings()
    assert (settings.every, settings.score, settings.dilate) == ("auto", 0.1, 3)
    assert settings.mend
    held = read_settings(propagate="hold")
    assert (held.every, held.mend) == (10, False)  # as the replaced scripts
    asked = read_settings(propagate="hold", every="auto", mend=True)
    assert (asked.every, asked.mend) == ("auto", True)
    assert settings.voxel_size is None
    assert settings.detect_window == "seed"
    assert settings.volume is None


@pytest.mark.parametrize(
    ("text", "z"),
    [
        ("3:9", (3, 9)),
        (":9", (None, 9)),
        ("3:", (3, None)),
        (":", (None, None)),
        (" 3 : ", (3, None)),
    ],
)
def test_ranges(text, z):
    assert read_settings(z=text).z == z


@pytest.mark.parametrize("text", ["100 5000", "100,5000"])
def test_windows(text):
    assert read_settings(detect_window=text).detect_window == (100, 5000)


def test_numbers_may_be_numpys():
    window = np.array([100, 5000])
    assert read_settings(window=window, detect_window=window).window == (100, 5000)
    assert read_settings(z=(np.int64(3), None), classes=np.array([2, 0])).classes == (0, 2)


@pytest.mark.parametrize("given_", ["2 0", "0,2", "0 2 2", (2, 0), ["0", "2"]])
def test_classes(given_):
    assert read_settings(classes=given_).classes == (0, 2)


def test_one_class_alone(tmp_path):
    assert read_settings(classes=1).classes == read_settings(classes="1").classes == (1,)
    for text in ("classes: 1", "classes: [1]"):
        (tmp_path / "run.yaml").write_text(text)
        assert read_settings(tmp_path / "run.yaml").classes == (1,)


def test_all_that_is_wrong_is_said_at_once():
    with pytest.raises(SettingsError) as error:
        read_settings(every=0, score=2, dilate=-1, voxel_size=0, z="9:3", speed="fast")
    for name in ("every", "score", "dilate", "voxel_size", "speed"):
        assert name in str(error.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"z": "9:3"},
        {"z": "a:b"},
        {"z": "7"},
        {"classes": "scroll"},
        {"classes": "-1"},
        {"classes": ()},
        {"classes": ""},
        {"detect_window": "5 1"},
        {"detect_window": "dark"},
        {"detect_window": "nan 5"},
        {"detect_window": "0 inf"},
        {"voxel_size": float("nan")},
    ],
)
def test_each_wrong_setting_is_refused(wrong):
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        read_settings(**wrong)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"score": "2"}, "score: write a number from 0 to 1 (got '2')"),
        ({"threads": 0}, "threads: write a number that is at least 1 (got 0)"),
        ({"voxel_size": "0um"}, "voxel_size: write a number above 0 (got 0.0)"),
        ({"batch": "many"}, "batch: write a whole number (got 'many')"),
        ({"mend": "perhaps"}, "mend: write true or false (got 'perhaps')"),
        ({"ngff": "0.3"}, "ngff: write '0.4' or '0.5' (got '0.3')"),
        ({"z": "a:b"}, "z: write a range as A:B"),
        ({"z": "1:2:3"}, "z: write a range as A:B"),
        ({"z": slice(3, 9)}, "z: write a range as A:B"),
        ({"z": (1, 2, 3)}, "z: write a range as A:B"),
        ({"voxel_size": float("nan")}, "voxel_size: write a number"),
        ({"threads": ["1"]}, "threads: write a whole number"),
        ({"checkpoint": ["a"]}, "checkpoint: write the name of a file"),
        ({"compressor": 5}, "compressor: write none, or one of"),
        ({"classes": [0.5]}, "classes: write one class or more"),
        ({"classes": {"0": "papyrus"}}, "classes: write one class or more"),
        ({"classes": float("inf")}, "classes: write one class or more"),
        ({"window": [10**400, 1]}, "window: write auto, or two numbers"),
        ({"window": {"1": "x", "2": "y"}}, "window: write auto, or two numbers"),
        ({"z": b"12"}, "z: write a range as A:B"),
        ({"classes": "x"}, "classes: write one class or more, counted from 0"),
        ({"window": "{dark}"}, "window: write auto, or two numbers LO HI (got '{dark}')"),
        ({"detect_window": ["1", "a"]}, "detect_window: write seed, auto, or two numbers LO HI"),
    ],
)
def test_each_fault_is_said_once_and_how_to_mend_it(wrong, said):
    with pytest.raises(SettingsError) as error:
        read_settings(**wrong)
    assert said in str(error.value)
    assert str(error.value).count("\n") == 1


@given(st.integers(1, 99), st.integers(1, 99))
def test_options_beat_the_config(tmp_path_factory, in_file, given_):
    config = tmp_path_factory.mktemp("config") / "run.yaml"
    config.write_text(f"every: {in_file}\ndilate: 1.5\n")
    assert read_settings(config).every == in_file
    settings = read_settings(config, every=given_, dilate=None)
    assert (settings.every, settings.dilate) == (given_, 1.5)


def test_the_shipped_config_holds_the_defaults():
    assert read_settings(CONFIGS / "default.yaml") == Settings()
    text = (CONFIGS / "default.yaml").read_text()
    assert [name for name in Settings.model_fields if f"{name}: " not in text] == []
    held = read_settings(CONFIGS / "default.yaml", propagate="hold")
    assert (held.every, held.mend) == (10, False)


def test_numbers_may_have_their_units():
    settings = read_settings(tolerance="20 %", voxel_size="7.91 µm", dilate="4%")
    assert (settings.tolerance, settings.voxel_size, settings.dilate) == (20, 7.91, 4)
    with pytest.raises(SettingsError, match=r"voxel_size: .*'7.91mm'"):
        read_settings(voxel_size="7.91mm")


def test_a_config_names_files_beside_itself(tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("checkpoint: model.pth\ndetect-window: 100 5000\nz: 5:9\n")
    settings = read_settings(config)
    assert settings.checkpoint == tmp_path / "model.pth"
    assert settings.detect_window == (100, 5000)
    assert settings.z == (5, 9)


def test_a_detectron2_config_is_the_models(tmp_path):
    config = tmp_path / "model.yaml"
    base = (
        f"_BASE_: {CONFIGS / 'mask_rcnn_R_50_FPN.yaml'}\nMODEL:\n  ROI_HEADS:\n    NUM_CLASSES: 1\n"
    )
    config.write_text(base + "    SCORE_THRESH_TEST: 0.4\n")
    weights = tmp_path / "model.pth"
    expected = Settings(model=config, checkpoint=weights, score=0.4)
    assert read_settings(config, checkpoint=weights) == expected
    assert read_settings(config, checkpoint=weights, score=0.2).score == 0.2
    config.write_text(base)
    assert read_settings(config, checkpoint=weights).score == 0.1
    with pytest.raises(SettingsError, match=r"model\.yaml describes a network, .* --checkpoint"):
        read_settings(config)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- a\n- b\n", "expected settings"),
        ("a: [1\n", "not valid YAML"),
        ("evry: 3\n", "evry: there is no such setting; did you mean every"),
    ],
)
def test_a_config_that_is_none_is_refused(tmp_path, content, message):
    config = tmp_path / "run.yaml"
    config.write_text(content)
    with pytest.raises(SettingsError, match=message):
        read_settings(config)


def test_a_config_of_both_kinds_is_refused(tmp_path):
    config = tmp_path / "both.yaml"
    config.write_text("every: 2\nMODEL:\n  MASK_ON: true\n")
    with pytest.raises(SettingsError, match=r"mixes .* \(every\)"):
        read_settings(config)


def test_a_value_of_any_size_makes_a_short_message(tmp_path):
    config = tmp_path / "bomb.yaml"
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    for name in ("every", "dilate", "score"):
        config.write_text("\n".join(lines) + f"\n{name}: *a9\n")
        with pytest.raises(SettingsError) as error:
            read_settings(config)
        assert len(str(error.value)) < 5000


def test_a_dilation_is_percent_or_micrometres():
    for written, read in {"3": 3, "3%": 3, 4.5: 4.5, "150um": "150um", "150 µm": "150um"}.items():
        assert read_settings(dilate=written).dilate == read
    for wrong in ("three", "150", 101, -3, "-1um", "150mm", "um", [3], "nan"):
        with pytest.raises(SettingsError) as error:
            read_settings(dilate=wrong)
        assert str(error.value).count("\n") == 1
        assert "write percent of the longer side, 0 to 100, or micrometres" in str(error.value)


def test_a_config_that_is_not_there(tmp_path):
    with pytest.raises(SettingsError, match="cannot read"):
        read_settings(Path(tmp_path / "none.yaml"))


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("none", ("none", 0)),
        ("blosc-lz4", ("blosc-lz4", 5)),
        ("blosc-zstd:7", ("blosc-zstd", 7)),
        (("none", 0), ("none", 0)),
        (["blosc-lz4", 3], ("blosc-lz4", 3)),
    ],
)
def test_a_compressor_and_its_level(text, meant):
    assert read_settings(compressor=text).compressor == meant


@pytest.mark.parametrize(
    "given_",
    [
        {"compressor": "gzip"},
        {"compressor": "blosc-lz4:fast"},
        {"compressor": "none:3"},
        {"compressor": ("foo", 3)},
        {"compressor": ["blosc-lz4", 77]},
        {"compressor": ("blosc-lz4", 0)},
        {"compressor": ("blosc-lz4",)},
        {"chunk": 100},
        {"levels": 0},
        {"ngff": "0.3"},
        {"window": (5, 5)},
        {"window": "seed"},
        {"y": "9:9"},
    ],
)
def test_formats_that_are_none_are_refused(given_):
    with pytest.raises(SettingsError, match=next(iter(given_))):
        read_settings(**given_)


def test_detectron2_has_no_fast_precision():
    assert read_settings(backend="detectron2").precision == "full"
    assert read_settings(precision="fast").backend == "torchvision"
    with pytest.raises(SettingsError, match="precision fast needs the torchvision backend"):
        read_settings(backend="detectron2", precision="fast")


def test_detectron2_takes_each_slice_alone():
    with pytest.raises(SettingsError, match="a batch above 1 needs the torchvision backend"):
        read_settings(backend="detectron2", batch=2)


@pytest.mark.parametrize("name", ["backend", "precision", "device"])
def test_words_that_are_none_of_the_choices(name):
    with pytest.raises(SettingsError, match=name):
        read_settings(**{name: "tpu"})
