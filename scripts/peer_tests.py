#!/usr/bin/env python3
"""Run transformers' own common tests with minibert's classes in place of its own.

The tests come from the source distribution of the version in scripts/constraints.txt, fetched from the package index
into a temporary folder. It holds the tests that all models, configurations and tokenizers share. It does not hold
DistilBERT's own: for these pass the `tests` folder of a checkout of the same version. Tests of what minibert does not
have are left out by name, each with its reason. Exit status 1 if any other test fails.

    scripts/peer_tests
    scripts/peer_tests --tests ../transformers/tests
    scripts/peer_tests --only hidden_states --all       # some tests, with their tracebacks, also those left out
"""

import argparse
import importlib
import os
import subprocess
import sys
import tarfile
import tempfile
import unittest
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch

import minibert
from minibert.pretrained import PreTrainedModel

ROOT = Path(__file__).resolve().parents[1]
PARAMETERIZED = "parameterized==0.9.0"  # the only package that the tests import and `.venv` lacks

# Files that the common tests import, and the source distribution lacks. None of them concerns DistilBERT.
MISSING_FILES = {
    "__init__.py": "",
    "utils/__init__.py": "",
    "utils/test_configuration_utils.py": "config_common_kwargs = {}",
    "exporters/__init__.py": "",
    "exporters/test_export.py": "class ExportTesterMixin: pass",
    "generation/__init__.py": "",
    "generation/test_utils.py": "class GenerationTesterMixin: pass",
    "fixtures/sample_text.txt": "A nice day.\n\nWhat about tomorrow?\n",
}

# The tests ask classes these questions about parts of transformers, before they test anything or decide not to.
ANSWERS: dict[type, dict[str, Any]] = {
    minibert.DistilBertConfig: {
        "sub_configs": {},
        "is_encoder_decoder": False,
        "base_model_tp_plan": None,
        "get_text_config": lambda self, decoder=False: self,
        "to_diff_dict": minibert.DistilBertConfig.to_dict,
    },
    PreTrainedModel: {
        "_from_config": classmethod(lambda cls, config, **_: cls(config)),
        "can_generate": classmethod(lambda cls: False),
        "main_input_name": "input_ids",
        "base_model_prefix": "distilbert",
        "supports_gradient_checkpointing": True,
        "_can_set_attn_implementation": classmethod(lambda cls: False),
        "_can_set_experts_implementation": classmethod(lambda cls: False),
        "_supports_sdpa": False,
        "_supports_flash_attn": False,
        "_supports_flex_attn": False,
        "_keep_in_fp32_modules": (),
        "_keep_in_fp32_modules_strict": (),
        "_tied_weights_keys": None,
        "is_remote_code": classmethod(lambda cls: False),
    },
}

LEFT_OUT: dict[str, str] = {  # reason: names of tests
    "chat templates, for models that generate": """
        test_chat_template test_chat_template_batched test_chat_template_dict test_chat_template_dict_saving
        test_chat_template_dict_saving_rejects_path_traversal test_chat_template_empty_conversation
        test_chat_template_file_priority test_chat_template_none_values test_chat_template_return_assistant_tokens_mask
        test_chat_template_return_assistant_tokens_mask_truncated test_continue_final_message
        test_continue_final_message_string_and_reasoning test_continue_final_message_with_decoy_earlier_message
        test_continue_final_message_with_trim test_jinja_loopcontrols test_jinja_strftime
    """,
    "tokens that DistilBERT has not (bos, eos), text_target, add_prefix_space": """
        test_added_tokens_serialization test_add_bos_token_without_bos_token test_tokenizers_common_ids_setters
        test_tokenizers_common_properties test_prepare_seq2seq_batch test_rust_tokenizer_add_prefix_space_0
        test_rust_tokenizer_add_prefix_space_1
    """,
    "training of a tokenizer": """
        test_training_new_tokenizer test_training_new_tokenizer_with_special_tokens_change
    """,
    "max_length with padding='longest' is an error here, there it is ignored": """
        test_batch_encode_plus_batch_sequence_length
    """,
    "a row that is too long is an error as a tensor here, there a warning in the log": """
        test_maximum_encoding_length_single_input test_maximum_encoding_length_pair_input
    """,
    "an unknown setting is a TypeError here, there an AttributeError": """
        test_tokenizer_initialization_with_conflicting_key
    """,
    "weights that a checkpoint lacks are an error here, unless a new head is asked for; there they are random": """
        test_base_model_prefix_loads_base_weights test_model_weights_reload_no_missing_tied_weights
    """,
    "config.output_attentions and config.output_hidden_states: here they are arguments of a call": """
        test_attention_outputs test_hidden_states_output test_retain_grad_hidden_states_attentions
        test_batching_equivalence
    """,
    "the sizes of a configuration cannot be set; resize_token_embeddings sets vocab_size": """
        test_load_with_mismatched_shapes test_model_get_set_embeddings
    """,
    "minibert has no output_loading_info=, enable_input_require_grads, model.vocab_size, subfolder=, to_json_file": """
        test_can_use_safetensors test_load_save_without_tied_weights test_enable_input_require_grads
        test_enable_input_require_grads_with_gradient_checkpointing test_resize_tokens_embeddings
        test_create_and_test_config_from_and_save_pretrained_subfolder test_create_and_test_config_to_json_file
    """,
    "loading under torch.device('meta') works here, there it is an error": """
        test_cannot_load_with_meta_device_context_manager
    """,
    "names of transformers' implementation: backend, init_kwargs, post_init, GradientCheckpointingLayer and others": """
        test_sequence_ids test_tokenizer_store_full_signature test_config_attn_implementation_setter
        test_correct_missing_keys test_resize_embeddings_untied_no_reinit_on_post_init
        test_from_pretrained_no_checkpoint test_can_load_ignoring_mismatched_shapes
        test_gradient_checkpointing_backward_compatibility test_gradient_checkpointing_enable_disable
        test_peft_gradient_checkpointing_enable_disable test_training_gradient_checkpointing
        test_training_gradient_checkpointing_use_reentrant_false test_training_gradient_checkpointing_use_reentrant_true
    """,
}

MODELS = (
    minibert.DistilBertModel,
    minibert.DistilBertForMaskedLM,
    minibert.DistilBertForSequenceClassification,
    minibert.DistilBertForTokenClassification,
    minibert.DistilBertForQuestionAnswering,
    minibert.DistilBertForMultipleChoice,
)


class ModelTester:
    """What the common model tests ask of a model: a small configuration, and inputs for it."""

    batch_size = 3
    seq_length = 7
    hidden_size = 32
    num_hidden_layers = 2
    num_attention_heads = 4
    num_choices = 4
    vocab_size = 99
    is_training = True

    def __init__(self, parent: Any) -> None:
        self.parent = parent

    def get_config(self) -> minibert.DistilBertConfig:
        """Return a small configuration."""
        return minibert.DistilBertConfig(
            vocab_size=self.vocab_size,
            dim=self.hidden_size,
            n_layers=self.num_hidden_layers,
            n_heads=self.num_attention_heads,
            hidden_dim=37,
            max_position_embeddings=64,
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[minibert.DistilBertConfig, dict[str, torch.Tensor]]:
        """Return a configuration, and random ids with a mask that hides some of them."""
        input_ids = torch.randint(0, self.vocab_size, (self.batch_size, self.seq_length))
        attention_mask = torch.ones_like(input_ids)
        attention_mask[1, -2:] = 0
        return self.get_config(), {"input_ids": input_ids, "attention_mask": attention_mask}


def fetch(folder: Path) -> Path:
    """Download the source distribution into a folder, and return its folder `tests`."""
    lines = (ROOT / "scripts/constraints.txt").read_text().splitlines()
    version = next(line for line in lines if line.startswith("transformers=="))
    pip_download(folder, "--no-binary", "transformers", version)
    (archive,) = folder.glob("transformers-*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    tests = archive.with_name(archive.name.removesuffix(".tar.gz")) / "tests"
    for name, content in MISSING_FILES.items():
        (tests / name).parent.mkdir(exist_ok=True)
        (tests / name).write_text(content)
    return tests


def pip_download(folder: Path, *arguments: str) -> None:
    """Download a package from the package index into a folder."""
    pip = [sys.executable, "-m", "pip", "-qq", "--disable-pip-version-check", "download", "--no-deps"]
    subprocess.run([*pip, "--dest", str(folder), *arguments], check=True)


def test_cases(tests: Path, own: bool) -> list[unittest.TestCase]:
    """Collect the tests in a folder, with minibert's classes.

    Args:
        tests: the folder, which is the package `tests`.
        own: also DistilBERT's own tests.
    """
    sys.path.insert(0, str(tests.parent))
    models = importlib.import_module("tests.test_modeling_common")
    configs = importlib.import_module("tests.test_configuration_common")
    tokenizers = importlib.import_module("tests.test_tokenization_common")

    class Model(models.ModelTesterMixin, unittest.TestCase):  # type: ignore[misc, name-defined]
        all_model_classes = MODELS

        def setUp(self) -> None:
            self.model_tester = ModelTester(self)

    class Config(unittest.TestCase):
        def setUp(self) -> None:
            self.tester = configs.ConfigTester(self, config_class=minibert.DistilBertConfig, dim=48)

    for name in dir(configs.ConfigTester):
        if name.startswith(("create_and_test", "check_config")):
            setattr(Config, f"test_{name}", lambda self, name=name: getattr(self.tester, name)())

    class Tokenizer(tokenizers.TokenizerTesterMixin, unittest.TestCase):  # type: ignore[misc, name-defined]
        tokenizer_class = minibert.DistilBertTokenizer
        from_pretrained_id = str(minibert.DEMO)

    class FastTokenizer(tokenizers.TokenizersBackendTesterMixin, unittest.TestCase):  # type: ignore[misc, name-defined]
        tokenizer_class = minibert.DistilBertTokenizer
        from_pretrained_id = str(minibert.DEMO)

    names = {case: unittest.TestLoader().getTestCaseNames(case) for case in (Model, Config, Tokenizer, FastTokenizer)}
    if own:
        transformers = importlib.import_module("transformers")  # test_configuration_common has imported it anew
        for name in minibert.__all__:
            if hasattr(transformers, name):
                setattr(transformers, name, getattr(minibert, name))
        # This imports the classes from transformers, and so gets minibert's.
        case = importlib.import_module("tests.models.distilbert.test_modeling_distilbert").DistilBertModelTest
        names[case] = [name for name in vars(case) if name.startswith("test_") and name not in names[Model]]
    return [case(name) for case, found in names.items() for name in found]


class Result(unittest.TestResult):
    """Counts the tests that pass, and says how far they are."""

    n_passed = 0

    def startTest(self, test: unittest.TestCase) -> None:  # noqa: N802 - the name is unittest's
        """Show the number of the test."""
        super().startTest(test)
        if sys.__stderr__ is not None and sys.__stderr__.isatty():
            print(f"\r{self.testsRun} {name_of(test):100.100}", end="\r", file=sys.__stderr__, flush=True)

    def addSuccess(self, test: unittest.TestCase) -> None:  # noqa: N802
        """Count the test."""
        self.n_passed += 1


def name_of(case: unittest.TestCase) -> str:
    """Return `Class.test_name`, also for a part of a test."""
    return ".".join(case.id().split(" ")[0].split(".")[-2:])


def main() -> int:
    """Print passed, failed and left out; exit status 1 after a failure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tests", type=Path, help="folder `tests` of a checkout of transformers")
    parser.add_argument("--only", default="", help="tests with this in their name, with tracebacks")
    parser.add_argument("--all", action="store_true", help="also the tests that are left out")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    for cls, answers in ANSWERS.items():
        for name, answer in answers.items():
            if not hasattr(cls, name):
                setattr(cls, name, answer)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        pip_download(folder, PARAMETERIZED)
        sys.path += [str(wheel) for wheel in folder.glob("*.whl")]
        cases = test_cases(args.tests or fetch(folder), own=args.tests is not None)
        reasons = {name: reason for reason, names in LEFT_OUT.items() for name in names.split()}
        if unknown := reasons.keys() - {name_of(case).split(".")[1] for case in cases}:
            print("LEFT_OUT names tests that do not exist:", *sorted(unknown))
            return 1
        cases = [case for case in cases if args.only in name_of(case)]
        left_out = [case for case in cases if case._testMethodName in reasons and not args.all]
        result = Result()
        with open(os.devnull, "w") as nothing, redirect_stdout(nothing), redirect_stderr(nothing):
            unittest.TestSuite(case for case in cases if case not in left_out).run(result)

    failed = {name_of(case): traceback for case, traceback in result.failures + result.errors}
    for name, traceback in sorted(failed.items()):
        print(f"failed: {name}: {traceback if args.only else traceback.splitlines()[-1]}")
    for reason, names in LEFT_OUT.items():
        print(f"left out, because minibert differs: {reason}:\n    {' '.join(names.split())}")
    skipped: dict[str, list[str]] = {}
    for case, reason in result.skipped:
        skipped.setdefault(reason, []).append(name_of(case))
    for reason, tests in skipped.items():
        print(f"left out by the test itself: {reason}:\n    {' '.join(tests)}")
    if args.tests is None:
        print("not run: DistilBERT's own tests, which the source distribution lacks (--tests FOLDER)")
    print(f"{result.n_passed} passed, {len(failed)} failed, {len(left_out) + len(result.skipped)} left out")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
