"""The fuzzer's own tests: its seeds are taken, and it finds readers that are bad."""

from tests.fuzz.readers import READERS, Seeds


def test_every_seed_is_taken(tmp_path):
    seeds = Seeds()
    refused = {}
    for name, reader in READERS.items():
        for number, content in enumerate(seeds.of(name)):
            try:
                reader.read(seeds.write(name, content, tmp_path))
            except Exception as error:
                refused[f"{name} {number}"] = repr(error)
    assert refused == {}
