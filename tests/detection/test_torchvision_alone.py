import subprocess
import sys
from textwrap import dedent

CHECKPOINT = "checkpoints/phantom_r18.safetensors"


def run(code):
    subprocess.run([sys.executable, "-c", dedent(code)], check=True)


def test_a_detector_looks_without_the_compiler():
    run(
        f"""
        import sys
        from pathlib import Path

        import numpy as np
        import torch

        from zarrmask.detection.load import load_detector
        detector = load_detector(Path("{CHECKPOINT}"))
        detector.detect([np.full((96, 96), 7, np.uint8)], [(96, 96)])
        assert "torchvision.ops" in sys.modules
        assert not {{"torch._dynamo", "torch._dynamo.utils"}} & set(sys.modules)
        if tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 8):  # older ones want it
            assert "sympy" not in sys.modules
        """
    )


def test_whoever_asks_the_compiler_has_its_answer():
    """Also another torchvision, that wants more of it at once."""
    run(
        """
        import sys

        asked = []

        class Finder:
            @staticmethod
            def find_spec(name, path=None, target=None):
                if name == "torchvision.ops.roi_align":
                    assert "torch._dynamo" not in sys.modules
                if name == "torchvision.ops.roi_pool":  # the next
                    from torch._dynamo.utils import counters
                    asked.append(counters)
        sys.meta_path.insert(0, Finder)
        import zarrmask.detection.torchvision_alone
        from torch._dynamo.utils import counters, is_compile_supported
        assert asked == [counters]
        answer = sys.modules["torchvision.ops.roi_align"].is_compile_supported
        assert answer is not is_compile_supported
        assert answer("cpu") == is_compile_supported("cpu")
        """
    )
