"""Checks of replies to `prompts.jsonl`, by name: a reply and its line, to how right it is, 0 to 1."""


def names_all(reply, line):
    """The share of the things that are named with their colours."""
    return sum(thing in reply.text for thing in line["things"]) / len(line["things"])


def is_short(reply, line):
    return 0 < len(reply.text.split()) <= line["limit"]
