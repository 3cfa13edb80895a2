"""English words that are spelled alike and sound different: which one stands here.

The words before and behind decide. Verbs follow to, will, don't, I, you, let ...; nouns follow a,
the, my, your ...; some words have tests of their own (tear me apart, wind it up, close your eyes).

    pronounce_here("live", before="we are", after="on the air")        ('L', 'AY1', 'V')
"""

from __future__ import annotations

import re

_VERB = (
    r"(?:\b(?:to|will|won't|can|can't|cannot|could|couldn't|would|wouldn't|should|shouldn't|might|may"
    r"|must|do|don't|did|didn't|doesn't|does|never|ever|always|gonna|wanna|gotta|let's|please|just"
    r"|i|you|we|they|i'll|you'll|we'll|they'll|he'll|she'll|it'll|i'd|you'd|we'd|they'd"
    r"|(?:let|make|makes|help|helps|watch|see) (?:me|you|him|her|us|them|it))) $|^ $"
)
_NOUN = (
    r"\b(?:a|an|the|my|your|his|her|our|their|its|this|that|these|those|no|some|any|every|each|one"
    r"|two|three|in|of|with|for|from|by|on|at|what|which|whose|another|single) $"
)
_ME = (
    r" (?:me|you|him|her|us|them|it|this|that|my|your|his|our|their|the|a|all|every|away|down|up)\b"
)
_HAVE = r"\b(?:have|has|had|having|i've|you've|we've|they've|been|be|was|were|is|are|got|get) $"
_PAST = r"\b(?:yesterday|ago|last night|last year|used to|once|back then|when i was|that night)\b"

# word -> (test of what stands before, test of what stands behind, phones) in order; both must hold.
_RULES: dict[str, tuple[tuple[str, str, str], ...]] = {
    "live": (
        (r"^ $", r" from\b", "L AY1 V"),
        (r"\b(?:it's|is|are|was|were|be|going|we're|i'm|sing|play|recorded) $",
         r" (?:from|on (?:air|the air|stage|tv|the radio)|tonight|in concert|and direct)\b|^$",
         "L AY1 V"),
        (r"", r" (?:show|band|music|wire|wires|stream|concert|audience|performance|tv|radio|bait"
         r"|crowd|session|broadcast|at the)\b", "L AY1 V"),
    ),
    "lives": ((_NOUN, r"", "L AY1 V Z"), (r"\b(?:nine|many|past|more|both|all|new|save|our) $", r"",
               "L AY1 V Z"), (r"", r"", "L IH1 V Z")),
    "read": (
        (r"\b(?:i'd|you'd|we'd|they'd|he'd|she'd) $", r".*\b(?:before|already)\b", "R EH1 D"),
        (_HAVE, r"", "R EH1 D"), (r"", _PAST, "R EH1 D"), (_PAST, r"", "R EH1 D"),
             (r"\b(?:he|she|it) $", r"", "R EH1 D")),
    "wind": (
        (r"", r" (?:up|down|back|around|it|the clock)\b", "W AY1 N D"),
        (r"\b(?:roads?|rivers?|streets?|paths?) $", r"", "W AY1 N D"),
    ),
    "winds": ((r"\b(?:roads?|rivers?|streets?|path|it|he|she) $", r"", "W AY1 N D Z"),
              (r"", r" (?:up|down|back|around)\b", "W AY1 N D Z")),
    "close": (
        (r"\b(?:so|too|very|how|as|stay|stays|hold|holding|come|came|keep|kept|get|getting|lie|pull"
         r"|pulled|hold (?:me|you|him|her|them)|pull (?:me|you)|keep (?:me|you)|you're|we're|i'm"
         r"|is|are|was|were|be|been|up|getting) $",
         r"(?! (?:the|my|your|our) (?:door|eyes|curtains?|book|window))", "K L OW1 S"),
        (r"", r" (?:to|enough|together|by|friends?|at hand|call|range)\b", "K L OW1 S"),
        (_VERB, r"", "K L OW1 Z"),
        (r"", r" (?:my|your|his|her|our|their|the|it|this|that|every|these|those|down|out)\b",
         "K L OW1 Z"),
    ),
    "lead": (
        (r"\b(?:of|like|molten|heavy as|as) $", r"", "L EH1 D"),
        (r"", r" (?:balloon|pipe|weight|bullets?|paint)\b", "L EH1 D"),
    ),
    "tear": (
        (_NOUN, r"(?! in my (?:shirt|dress))", "T IH1 R"),
        (_VERB, r"", "T EH1 R"),
        (r"", _ME + r"|(?: (?:apart|off|into|through)\b)", "T EH1 R"),
        (r"\b(?:and|'ll|wear and) $", r"(?: |$)", "T EH1 R"),
    ),
    "tears": (
        (r"\b(?:it|he|she|that|this|what|love|time|which|who) $", _ME + r"| (?:apart|at)\b",
         "T EH1 R Z"),
    ),
    "bow": (
        (r"\b(?:take|takes|took|taking) (?:a|my|your|his|her|the|one last|that) $", r"", "B AW1"),
        (r"", r" (?:down|to|before|out|my head|your head|our heads)\b", "B AW1"),
        (r"\bto $", r"", "B AW1"),
        (_NOUN, r"", "B OW1"),
    ),
    "bows": ((r"", r" (?:down|to|before|out)\b", "B AW1 Z"),),
    "wound": (
        (r"", r" (?:up|down|around|its way|tight|back)\b", "W AW1 N D"),
        (r"\b(?:tightly|all) $", r"", "W AW1 N D"),
    ),
    "row": ((r"\b(?:had|big|blazing) (?:a )?$", r"(?= with)", "R AW1"),),
    "sow": ((_NOUN, r"", "S AW1"),),
    "dove": ((r"\b(?:i|you|we|they|he|she) $", r" (?:in|into|down|deep|off|right|head)\b",
              "D OW1 V"),),
    "minute": ((r"", r" (?:detail|details|amounts?|particles?)\b", "M AY0 N UW1 T"),),
    "content": ((_HAVE + r"|\b(?:am|i'm|you're|we're|feel|felt|so|be|being|not) $", r"",
                 "K AH0 N T EH1 N T"), (r"", r" (?:with|to|in)\b", "K AH0 N T EH1 N T")),
    "desert": ((_VERB, r"", "D IH0 Z ER1 T"), (r"", r" (?:me|you|us|him|her)\b", "D IH0 Z ER1 T")),
    "use": ((_NOUN + r"|\b(?:no|what's the|any|much|little) $", r"", "Y UW1 S"),
            (r"", r"", "Y UW1 Z")),
    "used": ((r"", r" to\b", "Y UW1 S T"),),
    "excuse": ((_NOUN + r"|\b(?:no|good|poor) $", r"", "IH0 K S K Y UW1 S"),
               (r"", r"", "IH0 K S K Y UW1 Z")),
    "house": ((r"\b(?:to|will|can) $", r" (?:the|my|your|all|a)\b", "HH AW1 Z"),),
    "bass": ((r"\b(?:sea|striped|largemouth|catch a|fishing for) $", r"", "B AE1 S"),
             (r"", r"", "B EY1 S")),
    "polish": ((r"\b(?:the|a|in|speak) $", r" (?:girl|boy|town|song|people|air)\b",
                "P OW1 L IH0 SH"), (r"", r"", "P AA1 L IH0 SH")),
    "separate": ((_VERB, r"", "S EH1 P ER0 EY2 T"), (r"", r"", "S EH1 P ER0 AH0 T")),
}  # fmt: skip
# Verbs stress the second syllable, nouns the first: verb, noun.
_STRESS = {
    "conduct": ("K AH0 N D AH1 K T", "K AA1 N D AH0 K T"),
    "conflict": ("K AH0 N F L IH1 K T", "K AA1 N F L IH0 K T"),
    "contest": ("K AH0 N T EH1 S T", "K AA1 N T EH0 S T"),
    "contract": ("K AH0 N T R AE1 K T", "K AA1 N T R AE2 K T"),
    "contrast": ("K AH0 N T R AE1 S T", "K AA1 N T R AE2 S T"),
    "convict": ("K AH0 N V IH1 K T", "K AA1 N V IH0 K T"),
    "escort": ("EH0 S K AO1 R T", "EH1 S K AO0 R T"),
    "export": ("IH0 K S P AO1 R T", "EH1 K S P AO0 R T"),
    "import": ("IH0 M P AO1 R T", "IH1 M P AO2 R T"),
    "increase": ("IH0 N K R IY1 S", "IH1 N K R IY2 S"),
    "insult": ("IH0 N S AH1 L T", "IH1 N S AH2 L T"),
    "object": ("AH0 B JH EH1 K T", "AA1 B JH EH0 K T"),
    "permit": ("P ER0 M IH1 T", "P ER1 M IH2 T"),
    "present": ("P R IY0 Z EH1 N T", "P R EH1 Z AH0 N T"),
    "produce": ("P R AH0 D UW1 S", "P R OW1 D UW0 S"),
    "progress": ("P R AH0 G R EH1 S", "P R AA1 G R EH2 S"),
    "project": ("P R AH0 JH EH1 K T", "P R AA1 JH EH0 K T"),
    "protest": ("P R AH0 T EH1 S T", "P R OW1 T EH2 S T"),
    "rebel": ("R IH0 B EH1 L", "R EH1 B AH0 L"),
    "record": ("R IH0 K AO1 R D", "R EH1 K ER0 D"),
    "refuse": ("R IH0 F Y UW1 Z", "R EH1 F Y UW2 Z"),
    "subject": ("S AH0 B JH EH1 K T", "S AH1 B JH IH0 K T"),
    "suspect": ("S AH0 S P EH1 K T", "S AH1 S P EH2 K T"),
    "torment": ("T AO0 R M EH1 N T", "T AO1 R M EH2 N T"),
    "transport": ("T R AE0 N S P AO1 R T", "T R AE1 N S P AO0 R T"),
    "upset": ("AH0 P S EH1 T", "AH1 P S EH2 T"),
}
_MOSTLY_VERBS = frozenset(("refuse", "increase", "insult", "suspect", "produce", "upset"))
_CONTEXT = 40  # characters on either side


def pronounce_here(word: str, *, before: str, after: str) -> tuple[str, ...] | None:
    """Phones of a word that has several sounds, None for every other word.

    `before` and `after` are the line on its two sides.
    """
    word = word.lower().strip("'")
    if word not in _RULES and word not in _STRESS:
        return None
    ahead = " ".join(re.findall(r"[a-z']+|,", before[-_CONTEXT:].lower())) + " "
    behind = "".join(f" {part}" for part in re.findall(r"[a-z']+|,", after[:_CONTEXT].lower()))
    if word in _STRESS:
        verb, noun = _STRESS[word]
        if re.search(_NOUN, ahead):
            return tuple(noun.split())
        is_verb = word in _MOSTLY_VERBS or re.search(_VERB, ahead) or re.search(r"^" + _ME, behind)
        return tuple((verb if is_verb else noun).split())
    for test_before, test_after, phones in _RULES[word]:
        if re.search(test_before, ahead) and re.match(test_after, behind):
            return tuple(phones.split())
    return None
