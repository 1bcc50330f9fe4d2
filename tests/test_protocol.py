"""The protocol alone: what is encoded is decoded, and whatever else arrives is refused in one clear line."""

import contextlib
import weakref
from typing import get_args

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from navit_loader.config import RENDER_KEYS
from navit_loader.errors import RenderError, ServiceError
from navit_loader.service import protocol as p
from navit_loader.service.protocol import frames

wide = st.integers(0, p.WIDE)
ids = st.lists(wide, max_size=20).map(tuple)
requests = st.one_of(
    st.builds(
        p.GetBatch,
        wide,
        plan_id=st.text(max_size=128),
        render_id=st.text(max_size=128),
        epoch=wide,
        first=wide,
        count=st.integers(1, 65536),
        block=st.integers(-1, p.WIDE),
        before=wide,
        starved_us=wide,
        slots=ids,
    ),
    st.builds(p.GetEncoded, wide, first=wide, count=st.integers(1, 65536), limit=st.integers(1, p.WIDE)),
    st.builds(p.GetLayout, wide, plan_id=st.text(max_size=128), first=wide, count=st.integers(0, p.MAX_LAYOUT)),
    st.builds(p.Hello, wide, client=st.text(max_size=200), shared=st.booleans()),
    st.builds(p.Cancel, wide, requests=ids),
    st.builds(p.Credit, wide, slots=ids),
    st.builds(p.Bye, wide),
)
views = st.builds(p.Limits, st.integers(1, 40), st.integers(1, 40), st.integers(0, 3), st.just(0))
teachers = st.none() | st.builds(p.Limits, st.integers(1, 40), st.integers(1, 40), st.integers(0, 3), st.integers(1, 4))
infos = st.builds(
    p.PlanInfo,
    name=st.text(max_size=20),
    plan_id=st.text(max_size=64),
    render_id=st.text(max_size=64),
    classes=st.lists(st.text(max_size=8), max_size=5).map(tuple),
    label_width=st.integers(0, 3),
    max_images=st.integers(1, 9),
    text_tokens=st.integers(0, 5),
    max_text_tokens=st.integers(0, 5),
    vocabulary=st.integers(0, 2**31 - 1),
    patch_sizes=st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple),
    view=views,
    teacher=teachers,
    batch_size=st.integers(1, 100),
    remainder=st.sampled_from(["fill", "drop"]),
    memory=wide,
    render=st.builds(
        lambda *values: dict(zip(RENDER_KEYS, values, strict=True)),
        st.sampled_from(["bicubic", "bilinear", "area", "lanczos"]),
        st.booleans(),
        st.tuples(*[st.integers(0, 255)] * 3),
        st.integers(1, 2**31),
    ),
    weighted=st.booleans(),
    warps=st.booleans(),
)


@given(requests)
def test_requests_come_back_as_they_went(request: p.Request) -> None:
    assert p.decode_request(p.encode(request)) == request


@given(infos)
def test_a_plan_comes_back_as_it_went(info: p.PlanInfo) -> None:
    reply = p.decode_reply(p.encode(p.Welcome(3, info=info.to_table(), passage=("a", "b"))))
    assert reply.info is not None
    assert p.PlanInfo.from_table(reply.info) == info


@given(infos, st.integers(1, 4), st.randoms(use_true_random=False))
def test_a_batch_comes_back_as_it_went_without_a_copy(info: p.PlanInfo, count: int, random) -> None:
    size = random.choice(info.patch_sizes)
    sent = [random.randbytes(f.nbytes) for f in p.batch_shape(info, size, count).fields]
    request = p.GetBatch(1, epoch=5, first=7, count=count)
    batch = p.read_batch(info, request, size, sent)
    assert list(batch.arrays()) == [f.name for f in p.batch_shape(info, size, count).fields]
    assert [bytes(f) for f in p.batch_frames(batch)] == sent
    assert (batch.epoch, batch.sequence, batch.patch_size) == (5, 7, size)
    assert np.shares_memory(batch.patches, np.frombuffer(sent[0], np.uint8))
    assert info.nbytes(count) >= sum(map(len, sent))


@given(infos, st.integers(1, 4), st.randoms(use_true_random=False))
def test_a_batch_in_a_slot_is_read_where_it_lies(info: p.PlanInfo, count: int, random) -> None:
    size = random.choice(info.patch_sizes)
    shape = p.batch_shape(info, size, count)
    slot = np.frombuffer(random.randbytes(shape.slot_bytes), np.uint8)
    request = p.GetBatch(1, epoch=5, first=7, count=count)
    batch = p.read_slot(info, request, size, slot)
    for array, field, offset in zip(batch.arrays().values(), shape.fields, shape.offsets, strict=True):
        assert array.tobytes() == slot[offset : offset + field.nbytes].tobytes()
        assert array.flags.aligned and array.base is slot  # so that the slot lives as long as any of them
    with pytest.raises(ServiceError, match="too small for its batch"):
        p.read_slot(info, request, size, slot[:-1])
    with pytest.raises(ServiceError, match="patch size 500"):
        p.read_slot(info, request, 500, slot)


@given(infos, st.data())
def test_a_batch_with_one_wrong_length_is_refused_by_name(info: p.PlanInfo, data) -> None:
    fields = p.batch_shape(info, info.patch_sizes[0], 2).fields
    sent = [bytes(f.nbytes) for f in fields]
    wrong = data.draw(st.integers(0, len(sent) - 1))
    sent[wrong] += b"x"
    with pytest.raises(ServiceError, match=f"'{fields[wrong].name}' has"):
        p.read_batch(info, p.GetBatch(count=2), info.patch_sizes[0], sent)
    with pytest.raises(ServiceError, match="frames where"):
        p.read_batch(info, p.GetBatch(count=2), info.patch_sizes[0], sent[:-1])
    with pytest.raises(ServiceError, match="patch size 500"):
        p.read_batch(info, p.GetBatch(count=2), 500, sent)


@settings(max_examples=300)
@given(st.binary(max_size=300), st.booleans())
def test_random_bytes_are_refused(raw: bytes, prefixed: bool) -> None:
    raw = p.MAGIC + bytes([p.VERSION]) + raw if prefixed else raw
    for decode in (p.decode_request, p.decode_reply):
        with contextlib.suppress(ServiceError):
            assert decode(raw).kind in ("bye", "beat")  # the only words short enough to be met by chance


# Anything msgpack can say, in the place of a header's map.
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda v: st.lists(v, max_size=4) | st.dictionaries(st.text() | st.integers(-9, 9), v, max_size=4),
    max_leaves=10,
)


@settings(max_examples=300)
@given(requests, st.data())
def test_one_wrong_value_in_a_header_is_refused_or_well_typed(request: p.Request, data) -> None:
    table = msgpack.unpackb(p.encode(request)[4:])
    key = data.draw(st.sampled_from(sorted(table)) | st.text(max_size=5))
    table[key] = data.draw(values)
    with contextlib.suppress(ServiceError):
        got = p.decode_request(p.MAGIC + bytes([p.VERSION]) + msgpack.packb(table))
        for name in ("id", "epoch", "first", "count", "starved_us"):
            assert type(getattr(got, name, 0)) is int
        assert all(type(i) is int for name in ("slots", "requests") for i in getattr(got, name, ()))
        assert type(getattr(got, "plan_id", "")) is str


@given(infos, st.data())
def test_one_wrong_value_in_a_plan_is_refused_or_well_typed(info: p.PlanInfo, data) -> None:
    table = info.to_table()
    key = data.draw(st.sampled_from(sorted(table)))
    table[key] = data.draw(values)
    raw = p.encode(p.Welcome(1, info=table))
    try:
        got = p.decode_reply(raw)
        assert got.info is not None
        found = p.PlanInfo.from_table(got.info)
    except ServiceError:
        return
    assert found.nbytes(1) >= 0
    assert all(type(c) is str for c in found.classes)


PINNED = {
    p.Hello(1, "c", "p", True, "i", "r"): b"\x87\xa4kind\xa5hello\xa2id\x01\xa6client\xa1c\xa4plan\xa1p\xa6shared\xc3"
    b"\xa7plan_id\xa1i\xa9render_id\xa1r",
    p.GetBatch(2, "i", 3, 4, "r", 5, 6, 7, 8, (9, 10)): b"\x8b\xa4kind\xa5batch\xa2id\x02\xa7plan_id\xa1i\xa5epoch\x03"
    b"\xa5first\x04\xa9render_id\xa1r\xa5count\x05\xa5block\x06\xa6before\x07\xaastarved_us\x08\xa3ids\x92\t\n",
    p.GetEncoded(2, "i", 3, 4, "r", 5, starved_us=8, limit=11): b"\x8b\xa4kind\xa7encoded\xa2id\x02\xa7plan_id\xa1i"
    b"\xa5epoch\x03\xa5first\x04\xa9render_id\xa1r\xa5count\x05\xa5block\xff\xa6before\x00\xaastarved_us\x08"
    b"\xa5limit\x0b",
    p.GetLayout(2, "i", 3, 4, 5): b"\x86\xa4kind\xa6layout\xa2id\x02\xa7plan_id\xa1i\xa5epoch\x03\xa5first\x04"
    b"\xa5count\x05",
    p.Cancel(2, (300,)): b"\x83\xa4kind\xa6cancel\xa2id\x02\xa3ids\x91\xcd\x01,",
    p.Credit(): b"\x83\xa4kind\xa6credit\xa2id\x00\xa3ids\x90",
    p.Bye(3): b"\x82\xa4kind\xa3bye\xa2id\x03",
    p.BatchReply(2, 16): b"\x84\xa4kind\xa5batch\xa2id\x02\xaapatch_size\x10\xa4slot\xff",
    p.EncodedReply(2, 16): b"\x83\xa4kind\xa7encoded\xa2id\x02\xaapatch_size\x10",
    p.LayoutReply(2, 8, 9): b"\x84\xa4kind\xa6layout\xa2id\x02\xa3run\x08\xaanum_blocks\t",
    p.ErrorReply(2, "state", "m"): b"\x84\xa4kind\xa5error\xa2id\x02\xa5error\xa5state\xa7message\xa1m",
    p.Beat(): b"\x82\xa4kind\xa4beat\xa2id\x00",
}


def test_the_bytes_of_every_kind_are_those_of_version_1() -> None:
    for message, body in PINNED.items():
        assert p.encode(message) == b"NVT\x01" + body
    welcome = p.Welcome(1, {"name": "x"}, ("a", "b"))
    assert p.encode(welcome) == b"NVT\x01\x84\xa4kind\xa5hello\xa2id\x01\xa4info\x81\xa4name\xa1x\xa4door\x92\xa1a\xa1b"
    kinds = {type(message) for message in (*PINNED, welcome)}
    assert kinds == {*get_args(p.Request), *get_args(p.Reply)}


def test_another_version_is_refused_with_both_named() -> None:
    raw = bytearray(p.encode(p.Bye()))
    raw[3] = 7
    with pytest.raises(ServiceError, match=rf"client speaks protocol version 7, this daemon version {p.VERSION}"):
        p.decode_request(bytes(raw))
    with pytest.raises(ServiceError, match=rf"daemon speaks protocol version 7, this client version {p.VERSION}"):
        p.decode_reply(bytes(raw))


@pytest.mark.parametrize(
    ("key", "value"), [("ids", 5), ("ids", "55"), ("ids", [[1]]), ("id", True), ("count", 0), ("epoch", 1.0)]
)
def test_a_value_of_another_type_is_refused_by_name(key: str, value: object) -> None:
    table = msgpack.unpackb(p.encode(p.Cancel() if key == "ids" else p.GetBatch(count=1))[4:])
    table[key] = value
    with pytest.raises(ServiceError, match=f"'{key}"):
        p.decode_request(p.MAGIC + bytes([p.VERSION]) + msgpack.packb(table))


@pytest.mark.parametrize(
    "body",
    [
        b"\xdd\xff\xff\xff\xff",  # a list of 2**32 - 1 values
        b"\xdf\xff\xff\xff\xff",  # a map of as many
        b"\xdb\xff\xff\xff\xff",  # a string of 4 GiB
        b"\xc6\xff\xff\xff\xff",  # bytes of 4 GiB
        b"\xc9\xff\xff\xff\xff\x01",  # an extension of 4 GiB
        b"\x81" * 15000,  # maps nested 15,000 deep
        b"\x91" * 15000,
        b"\x81\xa4kind\xa5batch",
    ],
)
def test_huge_declared_lengths_are_refused_before_anything_is_allocated(body: bytes) -> None:
    with pytest.raises(ServiceError):
        p.decode_request(p.MAGIC + bytes([p.VERSION]) + body)


def test_a_header_has_a_largest_size() -> None:
    with pytest.raises(ServiceError, match="at most"):
        p.decode_request(bytes(p.MAX_REQUEST + 1))


def test_errors_keep_their_class_across_the_wire() -> None:
    reply = p.decode_reply(p.encode(p.error_reply(4, RenderError("'a.jpg' is gone"))))
    error = p.error_of(reply, "tcp://h:1")
    assert isinstance(error, RenderError)
    assert str(error) == "tcp://h:1: 'a.jpg' is gone"


@given(infos, st.integers(1, 4), st.data())
def test_a_frame_is_taken_for_the_field_whose_place_it_has(info: p.PlanInfo, count: int, data) -> None:
    """Whatever the order of the fields: no place is counted from the end."""
    size = info.patch_sizes[0]
    fields = p.encoded_fields(info, size, count)
    order = data.draw(st.permutations(fields))
    sent = {f.name: data.draw(st.randoms(use_true_random=False)).randbytes(f.nbytes) for f in fields}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frames, "encoded_fields", lambda *_: tuple(order))
        request = p.GetEncoded(count=count, limit=p.WIDE)
        batch = p.read_encoded(info, request, size, [*(sent[f.name] for f in order), b"files"])
    assert {name: a.tobytes() for name, a in batch.arrays().items()} == sent | {"data": b"files"}


@given(infos, st.integers(1, 3), st.randoms(use_true_random=False))
def test_a_batch_is_on_loan_until_its_last_frame_is_sent(info: p.PlanInfo, count: int, random) -> None:
    size = random.choice(info.patch_sizes)
    sent = [random.randbytes(f.nbytes) for f in p.batch_shape(info, size, count).fields]
    batch = p.read_batch(info, p.GetBatch(count=count), size, sent)
    loan = p.Sending()
    over = weakref.ref(loan)
    left = [frame for frame in p.batch_frames(batch, loan) if frame.nbytes]
    del loan
    random.shuffle(left)
    while left:
        assert over() is not None
        left.pop()
    assert over() is None
