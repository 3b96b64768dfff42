"""Reading and writing checkpoint folders: what transformers wrote, what transformers reads, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from reallm.checkpoint.load import read_checkpoint
from reallm.checkpoint.reader import open_checkpoint
from reallm.checkpoint.save import Export, write_checkpoint
from reallm.errors import CheckpointError, ConfigError
from reallm.hf.conversion.config import config_from_hf, config_to_hf
from reallm.hf.conversion.state_dict import state_dict_to_hf
from reallm.model.parameters import parameter_shapes
from reallm_hf_llama.plugin import LLAMA
from tests.helpers.hf_grid import raw_config, save_hf

RAW = raw_config("attention-bias")
CONFIG = config_from_hf(LLAMA, RAW)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A checkpoint in one file."""
    folder = tmp_path_factory.mktemp("original")
    save_hf(RAW, folder)
    return folder


@pytest.fixture(scope="module")
def original_shards(tmp_path_factory):
    """The same in several files."""
    folder = tmp_path_factory.mktemp("shards")
    save_hf(RAW, folder, max_shard_size="20KB")
    return folder


@pytest.fixture
def folder(original, tmp_path):
    """A copy to break."""
    return Path(shutil.copytree(original, tmp_path / "copy"))


@pytest.fixture
def shards(original_shards, tmp_path):
    """A copy to break."""
    return Path(shutil.copytree(original_shards, tmp_path / "copy"))


def read(folder, config=CONFIG, wanted=None):
    return read_checkpoint(folder, LLAMA, config, wanted)


def tensors_of(folder):
    return {name: tensor for file in Path(folder).glob("*.safetensors") for name, tensor in load_file(file).items()}


def same_bits(left, right):
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype
        assert torch.equal(tensor.view(torch.uint8), right[name].view(torch.uint8)), name


def write(folder, state, config=CONFIG, raw=RAW, **options):
    write_checkpoint(folder, Export(raw, state_dict_to_hf(LLAMA, state, config), **options))


def change_tensors(folder, change):
    """Write the single file again after `change(tensors)`; tensors changed in place are copies."""
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


class TestReading:
    def test_one_file_and_shards_hold_the_same(self, original, original_shards):
        assert len(list(original_shards.glob("*.safetensors"))) > 3
        same_bits(read(original), read(original_shards))
        assert read(original).keys() == parameter_shapes(CONFIG).keys()

    def test_any_subset(self, original):
        wanted = ["layers.3.out.weight", "layers.1.attn.q.bias"]
        subset = read(original, wanted=wanted)
        assert subset.keys() == set(wanted)
        assert torch.equal(subset["layers.3.out.weight"], tensors_of(original)["lm_head.weight"])

    def test_headers_say_type_and_shape(self, original):
        info = open_checkpoint(original).infos["lm_head.weight"]
        assert (info.file, info.dtype, info.shape) == (original / "model.safetensors", "F32", (97, 32))

    def test_tensors_lie_in_the_mapped_file(self, original):
        storages = {tensor.untyped_storage().data_ptr() for tensor in read(original).values()}
        size = (original / "model.safetensors").stat().st_size
        assert max(storages) - min(storages) < size

    def test_writing_to_a_tensor_never_reaches_the_file(self, folder):
        before = (folder / "model.safetensors").read_bytes()
        state = read(folder)
        parameter = torch.nn.Parameter(state["layers.3.out.weight"])
        with torch.no_grad():
            parameter.fill_(7.0)
            state["layers.0.tokens.weight"].zero_()
        assert (folder / "model.safetensors").read_bytes() == before
        assert not torch.equal(read(folder)["layers.3.out.weight"], parameter)

    def test_tensors_outlive_their_replaced_file(self, folder):
        state = read(folder)
        before = {name: tensor.clone() for name, tensor in state.items()}
        write(folder, {name: torch.zeros_like(tensor) for name, tensor in state.items()})
        same_bits(state, before)
        assert not any(tensor.any() for tensor in read(folder).values())

    def test_links_of_the_hubs_cache_are_followed(self, shards, tmp_path):
        """It keeps files elsewhere and links to them."""
        model = tmp_path / "models--org--name"
        (model / "snapshots").mkdir(parents=True)
        (model / "blobs").mkdir()
        cached = shards.rename(model / "snapshots" / "1a2b")
        for number, file in enumerate(cached.iterdir()):
            file.rename(model / "blobs" / str(number))
            file.symlink_to(Path("..", "..", "blobs", str(number)))
        assert read(cached).keys() == parameter_shapes(CONFIG).keys()

    def test_other_links_out_of_the_folder_are_refused(self, folder, tmp_path):
        file = folder / "model.safetensors"
        file.rename(tmp_path / "elsewhere.safetensors")
        file.symlink_to(tmp_path / "elsewhere.safetensors")
        with pytest.raises(CheckpointError, match=r"model\.safetensors is a link that leads out of its folder"):
            read(folder)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_types_are_kept(self, tmp_path, dtype):
        save_hf(RAW, tmp_path, dtype=dtype)
        assert {tensor.dtype for tensor in read(tmp_path).values()} == {dtype}


class TestCritic:
    config = CONFIG.replace(is_critic=True)
    head = "layers.3.out.weight"

    def test_of_a_language_model_lacks_only_its_head(self, original):
        assert parameter_shapes(self.config).keys() - read(original, self.config).keys() == {self.head}

    def test_of_a_tied_language_model_lacks_only_its_head(self, tmp_path):
        save_hf(raw_config("tied"), tmp_path)
        config = config_from_hf(LLAMA, raw_config("tied"), is_critic=True)
        assert parameter_shapes(config).keys() - read(tmp_path, config).keys() == {self.head}

    def test_of_a_critic_is_complete(self, tmp_path):
        raw = config_to_hf(LLAMA, self.config)
        model = save_hf(raw, tmp_path)
        assert torch.equal(read(tmp_path, self.config)[self.head], model.score.weight)

    def test_whose_head_was_lost_is_refused(self, tmp_path):
        save_hf(config_to_hf(LLAMA, self.config), tmp_path)
        change_tensors(tmp_path, lambda tensors: tensors.pop("score.weight"))
        with pytest.raises(CheckpointError, match=r"lacks 'score\.weight'"):
            read(tmp_path, self.config)


class TestWriting:
    @pytest.mark.parametrize("size", ["5GB", "20KB", 3000, "1MB"])
    @pytest.mark.parametrize("name", ["attention-bias", "tied"])
    def test_files_are_those_of_transformers_byte_for_byte(self, tmp_path, name, size):
        raw = raw_config(name)
        config = config_from_hf(LLAMA, raw)
        save_hf(raw, tmp_path / "theirs", max_shard_size=size)
        ours = tmp_path / "ours"
        write(ours, read(tmp_path / "theirs", config), config, raw, max_shard_size=size)
        files = sorted(file.name for file in (tmp_path / "theirs").glob("model*"))
        assert files == sorted(file.name for file in ours.glob("model*"))
        for file in files:
            assert (ours / file).read_bytes() == (tmp_path / "theirs" / file).read_bytes(), file

    def test_conversion_on_the_way(self, original, tmp_path):
        write(tmp_path / "new", read(original), dtype=torch.bfloat16, max_shard_size="20KB")
        index = json.loads((tmp_path / "new" / "model.safetensors.index.json").read_text())
        tensors = tensors_of(tmp_path / "new")
        assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
        same_bits(tensors, {name: tensor.bfloat16() for name, tensor in tensors_of(original).items()})

    def test_a_folder_may_be_replaced_by_what_was_read_from_it(self, shards):
        before = {name: tensor.clone() for name, tensor in tensors_of(shards).items()}
        write(shards, read(shards))
        assert [file.name for file in shards.glob("*.safetensors*")] == ["model.safetensors"]
        same_bits(tensors_of(shards), before)

    def test_tokenizer_and_generation_config_are_carried_over(self, folder, tmp_path):
        carried = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")
        for name in (*carried, "pytorch_model.bin", "README.md"):
            (folder / name).write_text(name)
        write(tmp_path / "new", read(folder), carry_from=folder)
        written = {file.name for file in (tmp_path / "new").iterdir()}
        assert written == {"config.json", "model.safetensors", *carried}
        assert (tmp_path / "new" / "tokenizer.json").read_text() == "tokenizer.json"

    def test_a_given_tokenizer_comes_before_that_of_the_source(self, folder, tmp_path):
        class Tokenizer:
            eos_token_id = None

            def save_pretrained(self, path):
                (Path(path) / "tokenizer.json").write_text("given")

        for name in ("tokenizer.json", "merges.txt", "generation_config.json"):
            (folder / name).write_text("source")
        write(tmp_path / "new", read(folder), carry_from=folder, tokenizer=Tokenizer())
        assert (tmp_path / "new" / "tokenizer.json").read_text() == "given"
        assert not (tmp_path / "new" / "merges.txt").exists()
        assert (tmp_path / "new" / "generation_config.json").read_text() == "source"

    def test_other_files_of_the_folder_stay(self, shards):
        (shards / "README.md").write_text("mine")
        (shards / "notes").mkdir()
        (shards / "notes" / "a.txt").write_text("also mine")
        (shards / "vocab.json").write_text("of the old tokenizer")
        write(shards, read(shards))
        assert (shards / "README.md").read_text() == "mine"
        assert (shards / "notes" / "a.txt").read_text() == "also mine"
        assert not (shards / "vocab.json").exists()

    def test_a_size_that_is_none(self, original, tmp_path):
        with pytest.raises(ConfigError, match="max_shard_size='big' is not a number of bytes or a size like '5GB'"):
            write(tmp_path / "new", read(original), max_shard_size="big")
        assert not (tmp_path / "new").exists()


def set_index(folder, change):
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


class TestBadIndex:
    @pytest.mark.parametrize("place", ["../{}", "/tmp/{}", "sub/{}", "..", "..\\{}", "", None, 3])
    def test_leading_out_of_the_folder(self, shards, place):
        name = "model-00001-of-00002.safetensors"
        place = place.format(name) if isinstance(place, str) else place
        set_index(shards, lambda weight_map: weight_map.update({"lm_head.weight": place}))
        with pytest.raises(CheckpointError, match=r"'lm_head.weight' is placed in .*outside of the folder: refused"):
            read(shards)

    def test_naming_a_pickle_file(self, shards):
        set_index(shards, lambda weight_map: weight_map.update({"lm_head.weight": "pytorch_model.bin"}))
        with pytest.raises(CheckpointError, match="'pytorch_model.bin', not a safetensors file; convert them once"):
            read(shards)

    def test_naming_a_missing_file(self, shards):
        next(shards.glob("model-00002*")).unlink()
        with pytest.raises(
            CheckpointError, match="names 'model-00002-of-.*', missing from the folder; download or copy"
        ):
            read(shards)

    def test_naming_a_missing_tensor(self, shards):
        set_index(shards, lambda weight_map: weight_map.update({"more": next(iter(weight_map.values()))}))
        with pytest.raises(CheckpointError, match="tensor 'more' is not in 'model-"):
            read(shards)

    def test_decides_where_two_files_hold_a_tensor(self, shards):
        first, second = sorted(shards.glob("*.safetensors"))[:2]
        name = next(iter(load_file(first)))
        save_file({**load_file(second), name: torch.zeros(1)}, second, metadata={"format": "pt"})
        assert open_checkpoint(shards).infos[name].file == first
        set_index(shards, lambda weight_map: weight_map.update({name: second.name}))
        assert open_checkpoint(shards).infos[name].file == second

    @pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": 3}'])
    def test_that_is_none(self, shards, text):
        (shards / "model.safetensors.index.json").write_text(text)
        with pytest.raises(
            CheckpointError, match=r"(cannot be read as JSON|must hold a JSON object|has no tensors in its weight_map)"
        ):
            read(shards)


class TestBadTensors:
    def test_missing(self, folder):
        change_tensors(folder, lambda tensors: tensors.pop("model.norm.weight"))
        with pytest.raises(CheckpointError, match="compared with config.json the checkpoint lacks 'model.norm.weight'"):
            read(folder)

    def test_many_missing(self, folder):
        change_tensors(folder, lambda tensors: [tensors.pop(name) for name in list(tensors) if "layers.1" in name])
        with pytest.raises(CheckpointError, match=r"lacks 'model.layers.1[^ ]*, '.*', '.*' and 10 more; take both"):
            read(folder)

    def test_unexpected(self, folder):
        change_tensors(folder, lambda tensors: tensors.update({"model.extra.weight": torch.zeros(1)}))
        with pytest.raises(CheckpointError, match="has the unexpected tensor 'model.extra.weight'"):
            read(folder)

    def test_biases_that_the_config_does_not_have(self, folder):
        with pytest.raises(
            CheckpointError, match=r"has the unexpected tensors 'model.layers.0.self_attn.k_proj.bias', .* and 5 more"
        ):
            read(folder, CONFIG.replace(q_bias=False, k_bias=False, v_bias=False, o_bias=False))

    def test_without_effect(self, folder):
        name = "model.layers.0.self_attn.rotary_emb.inv_freq"
        change_tensors(folder, lambda tensors: tensors.update({name: torch.zeros(4)}))
        assert len(read(folder)) == len(parameter_shapes(CONFIG))

    def test_of_a_wrong_shape(self, folder):
        change_tensors(folder, lambda tensors: tensors.update({"lm_head.weight": torch.zeros(96, 32)}))
        with pytest.raises(
            CheckpointError, match=r"'lm_head.weight' has shape \[96, 32\], but config.json asks for \[97, 32\]"
        ):
            read(folder)

    @pytest.mark.parametrize(
        ("dtype", "said"), [(torch.int8, "I8"), (torch.float64, "F64"), (torch.float8_e4m3fn, "F8_E4M3")]
    )
    def test_of_a_wrong_type(self, folder, dtype, said):
        change_tensors(folder, lambda tensors: tensors.update({"lm_head.weight": torch.zeros(97, 32).to(dtype)}))
        with pytest.raises(CheckpointError, match=f"'lm_head.weight' has dtype {said}; supported are F32, F16, BF16"):
            read(folder)

    def test_tied_head_that_is_stored_too(self, tmp_path):
        config = config_from_hf(LLAMA, raw_config("tied"))
        save_hf(raw_config("tied"), tmp_path)
        copy = {"lm_head.weight": tensors_of(tmp_path)["model.embed_tokens.weight"].clone()}
        change_tensors(tmp_path, lambda tensors: tensors.update(copy))
        assert "layers.3.out.weight" not in read(tmp_path, config)
        change_tensors(tmp_path, lambda tensors: tensors["lm_head.weight"].add_(1))
        with pytest.raises(CheckpointError, match=r"tie_word_embeddings is true, but 'lm_head.weight' differs"):
            read(tmp_path, config)


class TestBadFolder:
    @pytest.mark.parametrize("keep", [0, 5, 300, -1])
    def test_truncated_file(self, folder, keep):
        content = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(content[:keep])
        with pytest.raises(
            CheckpointError, match=r"model.safetensors is truncated or damaged \(.*\); download or copy"
        ):
            read(folder)

    def test_truncated_shard(self, shards):
        file = sorted(shards.glob("*.safetensors"))[1]
        file.write_bytes(file.read_bytes()[:-1])
        with pytest.raises(CheckpointError, match=f"{file.name} is truncated or damaged"):
            read(shards)

    def test_pickle_files_only(self, folder):
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
        with pytest.raises(
            CheckpointError, match=r"only as pickle files \('pytorch_model.bin'\), .*; convert them once"
        ):
            read(folder)

    def test_no_weights(self, folder):
        (folder / "model.safetensors").unlink()
        with pytest.raises(CheckpointError, match="holds neither model.safetensors nor model.safetensors.index.json"):
            read(folder)

    def test_errors_are_one_line(self, folder):
        (folder / "model.safetensors").write_bytes(b"\n\n\n")
        with pytest.raises(CheckpointError) as caught:
            read(folder)
        assert "\n" not in str(caught.value)
