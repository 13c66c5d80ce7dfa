"""One table of names, and what is done to tensors between formats: each the exact inverse of another."""

import itertools

import pytest
import torch
from torch import Tensor

from chameleon_lab.checkpoints import names
from chameleon_lab.checkpoints.huggingface import DIALECTS, norm_rows
from chameleon_lab.checkpoints.tensors import LazyTensor, lazy, tensors_of
from chameleon_lab.generation.decoder import Decoder
from chameleon_lab.stability import LayerScale, NormReordering, QueryKeyNorm, QueryKeyRMSNorm
from chameleon_lab.transformer import ModelConfig, Transformer

SMALL = ModelConfig(vocabulary=36, width=32, layers=2, heads=4, kv_heads=4, head_width=8, ffn_width=48, context=64)
SHAPES = {
    "multi-head": SMALL,
    "grouped": names.with_fixes(ModelConfig(36, 64, 2, 8, 4, 8, 48, 64), groups=4, swin=True),
    "odd": names.with_fixes(ModelConfig(37, 36, 3, 6, 3, 6, 50, 64), groups=3, swin=False),
    "one head": names.with_fixes(ModelConfig(33, 8, 1, 1, 1, 8, 20, 64), groups=1, swin=False),
    "a norm a head": names.with_fixes(ModelConfig(36, 32, 1, 4, 2, 8, 48, 64), groups=4, swin=True),
}


@pytest.fixture(params=SHAPES, ids=str)
def config(request) -> ModelConfig:
    return SHAPES[request.param]


def random_model(config: ModelConfig) -> Transformer:
    model = Transformer(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model


def read(tensors: dict[str, LazyTensor]) -> dict[str, Tensor]:
    for name, tensor in tensors.items():
        assert (tuple(tensor.read().shape), tensor.read().dtype) == (tensor.shape, tensor.dtype), name
    return {name: tensor.read() for name, tensor in tensors.items()}


def assert_same(ours: dict[str, LazyTensor], others: dict[str, LazyTensor]) -> None:
    left, right = read(ours), read(others)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_every_name_of_the_table_is_told_from_every_other():
    for column in ("ours", "meta", "theirs"):
        assert len({getattr(row, column) for row in names.TABLE}) == len(names.TABLE)
    assert all(row.ours.count("{}") == row.meta.count("{}") == row.theirs.count("{}") for row in names.TABLE)


def test_parts_are_in_the_table_and_become_the_same_model_again(config):
    tensors = tensors_of(random_model(config))
    parts = names.parts_of(tensors, config)
    for column in ("meta", "theirs"):
        there = names.rename(parts, "ours", column)
        assert not there.keys() & parts.keys() - {"norm.weight"}
        assert_same(names.rename(there, column, "ours"), parts)
    assert_same(names.fuse(parts, config), tensors)


def test_the_two_rotary_orders_undo_each_other(config):
    parts = names.parts_of(tensors_of(random_model(config)), config)
    halves = names.to_halves(parts, config.head_width)
    assert_same(names.to_pairs(halves, config.head_width), parts)
    changed = {name for name in parts if not torch.equal(parts[name].read(), halves[name].read())}
    assert changed == {name for name in parts if any(part in name for part in (".query", ".key"))}


@pytest.mark.parametrize("count", [1, 2, 4])
def test_shards_merge_into_what_they_were_cut_from(config, count):
    config = names.with_fixes(config, groups=1, swin=names.has_swin_norms(config))
    sizes = (config.heads, config.kv_heads, config.width, config.ffn_width, config.vocabulary)
    parts = names.parts_of(tensors_of(random_model(config)), config)
    if any(size % count for size in sizes):
        with pytest.raises(ValueError, match=rf"cannot be cut into {count} shards: .* cannot be shared evenly"):
            names.shard(parts, config, count)
        return
    shards = names.shard(parts, config, count)
    for shard in shards:
        read(shard)
    assert_same(names.fuse(names.merge(shards), config), names.fuse(parts, config))


def test_four_shards_become_two_and_one_and_four_again():
    config = names.with_fixes(SMALL, groups=1, swin=False)
    four = names.shard(names.parts_of(tensors_of(random_model(config)), config), config, 4)
    whole = names.merge(four)
    for count in (2, 1, 4):
        parts = names.fuse(names.merge(names.shard(whole, config, count)), config)
        whole = names.parts_of(parts, config)
    for shard, again in zip(four, names.shard(whole, config, 4), strict=True):
        assert_same(shard, again)


def test_shards_cut_each_tensor_as_the_release_does():
    config = names.with_fixes(ModelConfig(64, 32, 1, 8, 4, 4, 48, 64), groups=4, swin=False)
    parts = names.parts_of(tensors_of(Transformer(config)), config)
    shard = names.rename(names.shard(parts, config, 4)[3], "ours", "meta")
    assert {name: tensor.shape for name, tensor in shard.items()} == {
        "tok_embeddings.weight": (64, 8),
        "layers.0.attention.wq.weight": (8, 32),
        "layers.0.attention.wk.weight": (4, 32),
        "layers.0.attention.wv.weight": (4, 32),
        "layers.0.attention.wo.weight": (32, 8),
        "layers.0.attention.q_normalization.weight": (4,),
        "layers.0.attention.q_normalization.bias": (4,),
        "layers.0.attention.k_normalization.weight": (4,),
        "layers.0.attention.k_normalization.bias": (4,),
        "layers.0.feed_forward.w1.weight": (12, 32),
        "layers.0.feed_forward.w3.weight": (12, 32),
        "layers.0.feed_forward.w2.weight": (32, 12),
        "layers.0.attention_norm.weight": (32,),
        "layers.0.ffn_norm.weight": (32,),
        "norm.weight": (32,),
        "output.weight": (16, 32),
    }


def test_shards_of_two_models_are_refused():
    config = names.with_fixes(SMALL, groups=1, swin=False)
    shards = names.shard(names.parts_of(tensors_of(random_model(config)), config), config, 2)
    del shards[1]["norm.weight"]
    with pytest.raises(ValueError, match=r"do not belong together: norm\.weight is in one of shard 0 and shard 1 only"):
        names.merge(shards)
    shards[0].pop("norm.weight")
    odd = "blocks.0.attention.query.weight"
    shards[1][odd] = lazy(torch.zeros(3, 7))
    with pytest.raises(ValueError, match=r"\(16, 32\) .* and \(3, 7\) .* do not make one"):
        names.merge(shards)


def test_trap_01_query_key_norm_follows_the_rotary_permutation():
    """Turning the rows of q alone leaves the norm's weights on the wrong channels: scores change."""
    config = names.with_fixes(ModelConfig(36, 32, 1, 4, 2, 8, 48, 64), groups=2, swin=False)
    parts = names.parts_of(tensors_of(random_model(config)), config)
    halves = names.to_halves(parts, 8)
    x_TD = torch.randn(6, 32)

    def queries(tensors: dict[str, LazyTensor], vectors: dict[str, LazyTensor]) -> Tensor:
        stem = "blocks.0.attention.query"
        rows_THK = (x_TD @ tensors[f"{stem}.weight"].read().T).view(6, 4, 8)
        normed = torch.nn.functional.layer_norm(rows_THK, (8,))
        each = [vectors[f"{stem}_norm.{leaf}"].read().repeat_interleave(2, 0) for leaf in ("weight", "bias")]
        return normed * each[0] + each[1]

    pairs = queries(parts, parts)
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    assert torch.allclose(queries(halves, halves), pairs[..., order], atol=1e-6)
    assert not torch.allclose(queries(halves, parts), pairs[..., order], atol=1e-1)


def test_trap_03_norms_of_shards_stay_apart_and_are_never_averaged():
    config = names.with_fixes(ModelConfig(64, 32, 1, 8, 4, 4, 48, 64), groups=4, swin=False)
    parts = names.parts_of(tensors_of(random_model(config)), config)
    name = "blocks.0.attention.query_norm.weight"
    shards = names.shard(parts, config, 4)
    assert torch.equal(torch.stack([shard[name].read() for shard in shards]), parts[name].read())
    assert names.fewest_groups(names.merge(shards), config) == 4
    for count in (1, 2):
        with pytest.raises(
            ValueError, match=rf"4 different vectors.*room for {count}: their mean would be another model"
        ):
            names.shard(parts, config, count)


def test_trap_05_norms_after_branches_go_by_the_names_of_those_before():
    both = [names.with_fixes(SMALL, groups=1, swin=swin) for swin in (False, True)]
    parts = [names.parts_of(tensors_of(random_model(config)), config) for config in both]
    assert parts[0].keys() == parts[1].keys()
    assert "blocks.0.attention_pre_norm.weight" in names.fuse(parts[0], both[0])
    assert "blocks.0.attention_post_norm.weight" in names.fuse(parts[0], both[1])


def test_groups_are_as_few_as_the_vectors_allow():
    config = ModelConfig(36, 48, 1, 12, 4, 4, 48, 64)
    for groups in (1, 2, 4, 12):
        made = names.with_fixes(config, groups=groups, swin=False)
        parts = names.parts_of(tensors_of(random_model(made)), made)
        heads = {
            name: 12 if ".query_norm." in name else 4 for name in parts if "_norm." in name and "attention." in name
        }
        spread = parts | {name: names.regroup(parts[name], count, count, name) for name, count in heads.items()}
        assert names.fewest_groups(spread, config) == groups
        assert_same(names.fuse(spread, made), names.fuse(parts, made))
        assert names.fewest_groups(spread, config, likely=12) == 12


def test_zero_and_minus_zero_are_two_vectors():
    vectors = lazy(torch.tensor([[0.0, 1.0], [-0.0, 1.0]]))
    with pytest.raises(ValueError, match="2 different vectors"):
        names.regroup(vectors, 1, 2, "query_norm")
    same = names.regroup(lazy(torch.tensor([[0.0, torch.nan]] * 2)), 1, 2, "query_norm")
    assert same.shape == (1, 2)


def test_vectors_that_heads_cannot_share_are_refused():
    with pytest.raises(ValueError, match="3 vectors for 4 heads"):
        names.regroup(lazy(torch.ones(3, 8)), 4, 4, "query_norm")
    with pytest.raises(ValueError, match="3 vectors for 4 heads"):
        names.fewest_groups({"blocks.0.attention.query_norm.weight": lazy(torch.ones(3, 8))}, SMALL)


def test_no_matrix_is_read_before_it_is_asked_for():
    config = names.with_fixes(SMALL, groups=1, swin=False)
    asked: list[str] = []

    def watched(name: str, tensor: LazyTensor) -> LazyTensor:
        return LazyTensor(tensor.shape, tensor.dtype, lambda: asked.append(name) or tensor.read())

    tensors = {name: watched(name, tensor) for name, tensor in tensors_of(random_model(config)).items()}
    shards = names.shard(names.to_halves(names.parts_of(tensors, config), config.head_width), config, 2)
    again = names.fuse(names.to_pairs(names.merge(shards), config.head_width), config)
    assert all("query_norm" in name or "key_norm" in name for name in asked)  # vectors, compared where they become one
    asked.clear()
    again["blocks.1.attention.out.weight"].read()
    assert set(asked) == {"blocks.1.attention.out.weight"}


@pytest.mark.parametrize("groups", [1, 4])
def test_the_published_sizes_have_the_published_shapes(groups):
    """Without a byte of memory: the parameters are counted on the meta device, the shards by their shapes."""
    from chameleon_lab.training.experiments import CHAMELEON_7B, CHAMELEON_34B

    extra = 48 * 2 * 2 * (groups - 1) * 128  # what the released 34B has more: a norm for each of its four shards
    for experiment, count, swin in (
        (CHAMELEON_7B, 7_013_158_912, False),
        (CHAMELEON_34B, 34_293_448_704 + extra, True),
    ):
        config = names.with_fixes(experiment.model, groups if swin else 1, swin)
        with torch.device("meta"):
            tensors = tensors_of(Transformer(config))
        assert sum(tensor.nbytes // 4 for tensor in tensors.values()) == count
        for shards in (1, 4):
            if groups > 1 and shards == 1 and swin:
                continue
            cut = names.shard(names.parts_of(tensors, config), config, shards)
            shard = {name: tensor.shape for name, tensor in names.rename(cut[0], "ours", "meta").items()}
            width = config.width
            assert shard["tok_embeddings.weight"] == (65_536, width // shards)
            assert shard["output.weight"] == (65_536 // shards, width)
            assert shard["layers.31.attention.wk.weight"] == (config.kv_heads * 128 // shards, width)
            assert shard["layers.31.feed_forward.w2.weight"] == (width, config.ffn_width // shards)
            assert shard["layers.31.attention.q_normalization.bias"] == (128,)
    assert (CHAMELEON_7B.model.ffn_width, CHAMELEON_34B.model.ffn_width) == (11_008, 22_016)
    rows = {dialect: norm_rows(names.with_fixes(CHAMELEON_34B.model, groups, True), dialect) for dialect in DIALECTS}
    assert rows == {"huggingface": (64, 8), "lumina": (groups, groups), "anole": (1, 1)}


def test_decoding_with_a_norm_for_each_group_is_the_whole_sequence_at_once():
    config = SHAPES["grouped"]
    model, tokens_BT = random_model(config), torch.randint(0, config.vocabulary, (2, 12))
    decoder = Decoder(model, 2)
    with torch.inference_mode():
        steps = []
        for token in range(12):
            steps.append(decoder.logits(decoder.feed(tokens_BT[:, token : token + 1], [1, 1])))
        whole = model(tokens_BT)
        assert torch.allclose(torch.cat(steps, 1), whole, atol=1e-3 * float(whole.std()))


def test_what_a_format_cannot_express_is_named():
    for fix in (QueryKeyRMSNorm(), LayerScale(), QueryKeyNorm(eps=1e-6)):
        for format in ("meta", "huggingface"):
            with pytest.raises(ValueError, match=rf"'{format}' cannot express .*{type(fix).__name__}\("):
                names.check_expressible(ModelConfig(36, 32, 1, 4, 2, 8, 48, 64, fixes=(fix,)), format)
    bare = ModelConfig(36, 32, 1, 4, 2, 8, 48, 64, fixes=(NormReordering(),))
    names.check_expressible(bare, "meta")
    with pytest.raises(ValueError, match="the lack of a QueryKeyNorm"):
        names.check_expressible(bare, "huggingface")
    with pytest.raises(ValueError, match="4 heads of width 6 in a model of width 32"):
        names.check_expressible(ModelConfig(36, 32, 1, 4, 2, 6, 48, 64, fixes=(QueryKeyNorm(),)), "meta")


def test_a_norm_in_groups_gives_each_group_its_own_weights():
    from chameleon_lab.stability.slots import GroupedNorm

    x_BTHK = torch.randn(2, 3, 4, 8)
    norm = GroupedNorm(heads=4, groups=2, width=8)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    for head, group in itertools.product(range(4), range(2)):
        if head // 2 == group:
            own = torch.nn.functional.layer_norm(x_BTHK[:, :, head], (8,), norm.weight[group], norm.bias[group])
            assert torch.allclose(norm(x_BTHK)[:, :, head], own, atol=1e-6)
    with pytest.raises(ValueError, match="4 heads do not make 3 equal groups"):
        GroupedNorm(heads=4, groups=3, width=8)


def test_there_are_never_more_groups_than_heads():
    model = Transformer(ModelConfig(36, 32, 1, 4, 2, 8, 48, 64, fixes=(QueryKeyNorm(groups=4),)))
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if "_norm.weight" in name}
    assert shapes["blocks.0.attention.query_norm.weight"] == (4, 8)
    assert shapes["blocks.0.attention.key_norm.weight"] == (2, 8)
