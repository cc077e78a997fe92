"""Arguments of config files: wrong order, models in place of data sets, files, unknown names."""

import pytest

from launch.engine import config as configs
from tasks.common.errors import UserError


@pytest.mark.parametrize(
    ("file", "argument", "message"),
    [
        ("text_classification", "attention_pooling",
         "config: 'attention_pooling' is a model, not a data set; write DATA,MODEL, such as "
         "movie_reviews,attention_pooling"),
        ("language_modeling", "bert", "'bert' is a model, not a data set; write DATA,MODEL"),
        ("text_classification", "transformer,sst2", "the order DATA,MODEL; write sst2,transformer"),
        ("language_modeling", "bert,sst2", "expected the order DATA,MODEL; write sst2,bert"),
        ("translation", "rnn,multi30k", "write multi30k,rnn"),
        ("translation", "rnn(location_aware(width=5)),multi30k",
         r"write multi30k,rnn(location_aware(width=5))"),
        ("image_classification", "vit,digits", "write digits,vit"),
        ("segmentation", "gates,camvid", "expected the order DATA,ATTENTION,long; write camvid,"),
        ("segmentation", "long,gates", "write gates,long"),
        ("detection", "detr,nuclei", "write nuclei,detr"),
        ("recommendation", "hybrid,beauty", "write beauty,hybrid"),
        ("speech_recognition", "ctc,conformer", "the order DATA,ENCODER,DECODER; write conformer,"),
        ("sequence_copy", "dot,copied_digits", "DATA,ALIGNMENT; write copied_digits,dot"),
        ("text_classification", "sst2,movie_reviews", "with two words for DATA, 'sst2' and 'movie"),
        ("text_classification", "mine/x.csv",
         "is a path, expected DATA,MODEL; to use your own files, replace the path by own and "
         "add --data=mine/x.csv"),
        ("image_classification", "mine/photos", "the path by own and add --data=mine/photos"),
        ("image_classification", "cifar10", "DATA one of digits, fashion_mnist, own and MODEL one"),
        ("detection", "nucleii", "(did you mean 'nuclei'?)"),
        ("recommendation", "movielens", "(did you mean 'movielens_100k'?)"),
        ("translation", "multi30,rnn", "(did you mean 'multi30k'?)"),
        ("speech_recognition", "spoken_digit", "(did you mean 'spoken_digits'?)"),
        ("forecasting", "etth1,patchts", "got 'patchts' (did you mean 'patchtst'?)"),
    ],
)  # fmt: skip
def test_messages(file, argument, message):
    with pytest.raises(UserError) as raised:
        configs.load_values(f"configs/{file}.py:{argument}")
    assert message in str(raised.value)


@pytest.mark.parametrize(
    "specification",
    [
        "text_classification.py:tfds:glue,transformer",
        "image_classification.py:mean",
        "image_classification.py:convnet,se(reduction=4)",
        "segmentation.py:land_water,gates,long",
        "detection.py:path:mine.json,detr",
        "translation.py:rnn(location_aware(width=5))",
        "speech_recognition.py:multi_head(num_heads=4)",
        "forecasting.py:96,patchtst,etth1",
    ],
)
def test_other_arguments_are_accepted(specification):
    assert configs.load_values(f"configs/{specification}")["task"]
