"""A ViT-S in training from a loader: is it ever hungry? In: the kit's corpus. Out: images/s from the loader, the share
of the time in which the training thread waited for a batch, images/s from batches on the device already; each way of decoding.

    python bench/day/feed.py --out FILE [--seconds N]
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from decode import corpus
from rows import Rows, need_gpu

STEPS = 60


def main() -> None:
    rows = Rows.begin(__doc__)
    need_gpu(rows, "ViT-S from 16 cores", "ViT-S from encoded batches")
    from navit_loader import DevicePrefetcher, LoaderConfig, PackedLoader, build_index
    from navit_model import NaViT, NaViTConfig

    model = NaViT(NaViTConfig.preset("S/16", classes=1000)).cuda().train()
    model.compile()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    cores = len(os.sched_getaffinity(0))

    def step(batch: Any) -> None:
        with torch.autocast("cuda", torch.bfloat16):
            outputs = model(batch)
        outputs.float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    with TemporaryDirectory() as name:
        folder = Path(name)
        index = folder / "files.arrow"
        build_index(corpus(folder, 20_000), index)
        resolution = {"kind": "fixed", "low": 256, "high": 256}
        plan = {"sequence_length": 1024, "max_tokens": 256, "max_images": 16, "resolution": resolution}
        config = LoaderConfig.from_dict({"data": {"batch_size": 64}, "plan": plan, "render": {"threads": cores}})

        def loader_alone() -> float:
            """Images a second of the engine with nothing beside it: what so many cores can decode at most."""
            with PackedLoader(index, config) as loader:
                start, seen = time.perf_counter(), 0
                for batch in loader:
                    seen += batch.num_images
                    if seen > 8000:
                        break
            return seen / (time.perf_counter() - start)

        def fed(label: str, decode: str) -> None:
            with PackedLoader(index, config, decode=decode, device="cuda") as loader:  # type: ignore[arg-type]
                feed = DevicePrefetcher(loader, "cuda", depth=3)

                def endless() -> Iterator[Any]:
                    while True:
                        yield from feed

                batches = endless()
                held = next(batches).to("cuda")
                for _ in range(6):
                    step(next(batches).to("cuda"))
                torch.cuda.synchronize()
                waited, seen, start = 0.0, [], time.perf_counter()
                for _ in range(STEPS):
                    before = time.perf_counter()
                    batch = next(batches).to("cuda")
                    waited += time.perf_counter() - before
                    seen.append((batch.status == 1).sum())
                    step(batch)
                torch.cuda.synchronize()
                spent = time.perf_counter() - start
                batches.close()  # type: ignore[attr-defined]
            start = time.perf_counter()
            for _ in range(STEPS):
                step(held)
            torch.cuda.synchronize()
            alone = time.perf_counter() - start
            images = int(torch.stack(seen).sum())
            rate, hungry = images / spent, images / alone
            values = {"waited": waited / spent, "longer_than_from_memory": max(0.0, 1 - alone / spent)}
            if decode == "cpu":
                values["cores_that_decode"] = cores * hungry / loader_alone()
            rows.add(label, images_per_s=rate, from_memory_images_per_s=hungry, **values)

        rows.attempt(f"ViT-S from {cores} cores", lambda: fed(f"ViT-S from {cores} cores", "cpu"), needs=15)
        for decode in ("nvjpeg", "dali"):
            label = f"ViT-S from encoded batches, {decode}"
            rows.attempt(label, lambda label=label, decode=decode: fed(label, decode), needs=10)


if __name__ == "__main__":
    main()
