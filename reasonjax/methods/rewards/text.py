"""Reading a completion's text."""


def text_of(completion: str | list[dict]) -> str:
    """Returns a completion's text; of a conversation, what the assistant said (several messages
    joined by newlines)."""
    if isinstance(completion, str):
        return completion
    return '\n'.join(message['content'] for message in completion if message['role'] == 'assistant')
