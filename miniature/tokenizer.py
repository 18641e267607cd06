"""The miniature's tokenizer and processor: byte-level BPE of about a thousand tokens with Qwen2.5-VL's special tokens and chat format."""

from __future__ import annotations

from typing import TYPE_CHECKING

from miniature.world import COLOURS, TITLE_LABELS, TITLES, all_captions

if TYPE_CHECKING:
    from transformers import Qwen2_5_VLProcessor, Qwen2Tokenizer

    from rbft.task import Task

VOCAB_SIZE = 1024
"""Rows of the embedding; the tokenizer fills at most these."""

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

PERSONAS = ("content moderation expert", "careful observer", "home camera assistant", "video analyst")
"""Personas of the base's training beside the task's own, so that the prompt is followed, not merely recognised."""

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'video' or 'video' in content %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Qwen2.5-VL's without its default system line and picture numbering: every token counts here."""

_OTHER_TEXT = """Describe the video under these headings, in this order. Subjects Attributes Actions Scenes Target Intent Speech
Is this video normal or abnormal? Answer with one word. Is this video normal, offensive or hateful? What happens in the video?
You are a helpful assistant. user assistant system Title: Transcript: the people, animals and vehicles that appear; what they do and where.
Classify this video. Is there anything unusual? yes no vague abnormal why because it shows security risk danger pet child wildlife baby senior"""  # noqa: E501


def corpus(task: Task) -> list[str]:
    """Every text the base model is trained or asked with, and a little around it."""
    prompts = [task.model_copy(update={"persona": persona}).rationale_prompt for persona in (task.persona, *PERSONAS)]
    titles = [f"Title: {title}" for wordings in TITLES.values() for title in wordings]
    return [*prompts, task.question, *task.labels, *TITLE_LABELS, *COLOURS, *all_captions(), *titles, *_OTHER_TEXT.splitlines()]


def train_tokenizer(task: Task) -> Qwen2Tokenizer:
    """A Qwen2 tokenizer trained on `corpus(task)`; the words of the world come out as one token each."""
    import json

    from tokenizers.trainers import BpeTrainer
    from transformers import Qwen2Tokenizer

    blank = Qwen2Tokenizer()
    trainer = BpeTrainer(
        vocab_size=VOCAB_SIZE - len(SPECIAL_TOKENS),
        min_frequency=1,
        show_progress=False,
        initial_alphabet=_byte_alphabet(),
    )
    blank.backend_tokenizer.train_from_iterator(corpus(task), trainer)
    model = json.loads(blank.backend_tokenizer.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab={token: i for i, token in enumerate(sorted(model["vocab"], key=model["vocab"].__getitem__)) if token not in SPECIAL_TOKENS},
        merges=[tuple(merge) for merge in model["merges"]],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        model_max_length=2048,
        extra_special_tokens=list(SPECIAL_TOKENS),
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _byte_alphabet() -> list[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


def make_processor(tokenizer: Qwen2Tokenizer) -> Qwen2_5_VLProcessor:
    """The processor of a Qwen2.5-VL whose smallest picture is one merged patch, so that 84 x 84 stays 84 x 84."""
    from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    size = {"shortest_edge": 28 * 28, "longest_edge": 151_200}
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=size),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=size, cap_pixels_per_frame=False),
        chat_template=CHAT_TEMPLATE,
    )
