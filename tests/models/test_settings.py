"""A setting that is not what its field says is named in one sentence."""

import pytest

from hepattn.models.decoder_config import DecoderConfig
from hepattn.models.encoder_config import EncoderConfig


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"dim": "64"}, "dim='64', expected a whole number"),
        ({"dim": 64.0}, "dim=64.0, expected a whole number"),
        ({"cls": 1.5}, "cls=1.5, expected a whole number"),
        ({"registers": True}, "registers=True, expected a whole number or None"),
        ({"gate": "no"}, "gate='no', expected True or False"),
        ({"layer_scale": "a"}, "layer_scale='a', expected a finite number or None"),
        ({"layer_scale": -1.0}, "layer_scale=-1.0: give a factor of at least 0"),
        ({"dense_ratio": float("nan")}, "dense_ratio=nan, expected a finite number"),
        ({"norm": "batch"}, "norm='batch', expected one of 'rms', 'layer'"),
        ({"qk_norm": "batch"}, "qk_norm='batch', expected one of 'rms', 'layer' or None"),
        ({"activation": "sin"}, "activation='sin', expected one of 'relu'"),
        ({"drop_path": 0.5, "num_layers": 1}, "with one layer, leave it out"),
    ],
)
def test_settings_of_an_encoder(settings, words):
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        EncoderConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"block": 64.0}, "Decoder got block=64.0, expected a whole number or None"),
        ({"masked": 1}, "masked=1, expected True or False"),
        ({"activation": "sin"}, "activation='sin', expected one of 'relu'"),
        ({"drop_path": 0.5, "num_layers": 1}, "with one layer, leave it out"),
        ({"layer_scale": -1.0, "zero_start": False}, "at least 0"),
    ],
)
def test_settings_of_a_decoder(settings, words):
    with pytest.raises(ValueError, match=words):
        DecoderConfig(**settings)


def test_one_cls_token_may_be_called_true():
    assert EncoderConfig(cls=True).cls == DecoderConfig(cls=True).cls == 1
    assert type(EncoderConfig(cls=True).cls) is int
