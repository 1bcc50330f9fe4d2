"""The bare model in a process of its own, where the Rust extension cannot be imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ALONE = """
import sys
sys.modules["navit_loader._packer"] = None  # as where it was never built: the import fails
import pkgutil
import navit_model.model
for module in pkgutil.iter_modules(navit_model.model.__path__):
    __import__(f"navit_model.model.{module.name}")
print(*sorted(name for name, found in sys.modules.items() if name.startswith("navit_loader.") and found))

import torch
sys.path.insert(0, sys.argv[1])
from packed import packed
from navit_model import NaViT, NaViTConfig
net = NaViT(NaViTConfig(width=32, depth=1, heads=2, patch_size=4, classes=3)).eval()
torch.nn.init.normal_(net.head.weight)
batch = packed([[(2, 3), (4, 1)]], length=16, longest=8, images=3, patch=4).to("cpu")
with torch.no_grad():
    net.save_pretrained(sys.argv[2])
    assert torch.equal(NaViT.from_pretrained(sys.argv[2])(batch), net(batch))
"""


def test_a_model_runs_and_is_saved_without_the_packer(tmp_path: Path) -> None:
    """Every file of `model/` is imported; a forward of a batch made by hand; weights out and in again."""
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(here), str(tmp_path)], cwd=here.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    # Of the loader a model knows the batch and the errors; the rest is what its configuration is read with.
    assert done.stdout.split() == [f"navit_loader.{name}" for name in ("batch", "bounds", "errors", "schema")]
