"""With the base model of the package, the sampler gives the same tokens as transformers' generate."""

import pytest

from mft_jax.base_model import CHECKPOINT
from mft_jax.config import SamplingConfig
from mft_jax.models.chat import load_chat
from mft_jax.models.config import read_model_config
from mft_jax.models.weights import load_base
from mft_jax.programs import Programs
from mft_jax.prompts import GENERAL, assistant
from mft_jax.sampling import Request, Sampler
from mft_jax.seeds import row_key

QUESTIONS = ["What is 3+14*25+9-2*7?", "What is 29+29*29+29-0*1?", "What is 0+1*2+3-4*5?"]


@pytest.mark.torch
def test_greedy_decoding_equals_transformers(one_device):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    chat, config = load_chat(CHECKPOINT), read_model_config(CHECKPOINT)
    graphdef, base = load_base(CHECKPOINT, config)
    settings = SamplingConfig(temperature=0.0, max_new_tokens=96, rows=4, prefill_rows=4)
    sampler = Sampler(Programs(graphdef, config, one_device), base, settings, stop_ids=chat.stop_ids, lanes=1)
    firsts = [[GENERAL.first(question)] for question in QUESTIONS]
    texts = ["14*25=350\n2*7=14\n3+350=353\n\\boxed{348}", "14*25=340\n\\boxed{338}"]
    later = [[GENERAL.first(QUESTIONS[0]), assistant(texts[0]), GENERAL.later("\n".join(texts))]]
    summary = [[GENERAL.summary(QUESTIONS[0], texts)]]
    dialogues = firsts + later + summary
    requests = [Request(None, chat.prompt(dialogue), row_key(i)) for i, dialogue in enumerate(dialogues)]
    completions, _ = sampler.sample(requests)

    model = AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    for dialogue, request, completion in zip(dialogues, requests, completions, strict=True):
        inputs = tokenizer.apply_chat_template(
            dialogue, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        assert inputs["input_ids"][0].tolist() == list(request.prompt)
        generated = model.generate(**inputs, do_sample=False, max_new_tokens=96)[0, len(request.prompt) :].tolist()
        assert generated == [*completion.ids, *(chat.stop_ids if completion.complete else ())]
        assert len(generated) > 10
