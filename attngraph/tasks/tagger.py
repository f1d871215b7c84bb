"""What does each sentence of a chain of thought do? Eight categories, by rules.

The categories are those of Bogdan et al. 2025 (arXiv 2506.19143, after Venhoff et al. 2025), whose labels come from a
language model. The rules read a sentence and what the sentences before it were:

1. Words that announce an act decide: a boxed answer, doubt, checking, a plan, a known fact, a conclusion.
2. Without one, a formula with numbers is a computation.
3. Whatever follows a check or a derivation goes on with it, until one of these words says otherwise.

How well they agree with labelled traces is measured by ``tests/benchmarks/tagger.py`` and told in
``docs/benchmarks.md``. They know English mathematics; elsewhere expect less.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, get_args

Category = Literal[
    "problem_setup",
    "plan_generation",
    "fact_retrieval",
    "active_computation",
    "result_consolidation",
    "uncertainty_management",
    "self_checking",
    "final_answer_emission",
]
CATEGORIES: tuple[Category, ...] = get_args(Category)


def _any(*patterns: str) -> re.Pattern[str]:
    """A pattern that any of the patterns finds; capitals don't matter."""
    return re.compile("|".join(patterns), re.IGNORECASE)


_FINAL = _any(
    r"\\boxed",
    r"\*\*final answer",
    r"\bfinal answer (?:is|should be)\b",
    r"\b(?:answer|value)\b.* is \*\*",
)
_DOUBT = _any(
    r"^(?:but )?wait\b",
    r"^hmm\b.*(?:maybe|perhaps|but|seems|wait|not|confus)",
    r"^(?:hold on|actually, (?:no|wait)|or (?:is|does|maybe))\b",
    r"\b(?:not sure|can't be|contradiction|incorrect|wrong|invalid)\b",
    r"\b(?:confus|mistake|misunderst|misread|misinterpret|overcomplicat)",
    r"does(?:n't| not) (?:make sense|seem right|work|match)",
    r"\bseems (?:off|wrong|too)\b",
    r"\b(?:that's|is) not right\b",
    r", right\?",
    r"^(?:but|so,?) (?:is|does|do|are|what) .*\?$",
    r"\bI(?: might| may)?(?: have)? (?:made|missed|miscounted)\b",
)
_CHECK = _any(
    r"\bdouble[- ]check",
    r"\bverif(?:y|ying|ied)\b",
    r"\blet (?:me(?: just)?|us) (?:check|confirm)",
    r"\blet's (?:check|verify|confirm)",
    r"\b(?:recalculat|re-?check|sanity check)",
    r"\bcheck (?:again|if|whether|that|the|my)\b",
    r"\bgo (?:back|through) .*again",
    r"\bto (?:be sure|confirm|check)\b",
    r"✔|✓",
)
_CONFIRMED = _any(
    r"^(?:yes|yep|yeah|correct|right|good|great|ok|okay)[,.!]",
    r"\b(?:indeed|makes sense|consistent with|as (?:expected|before)|same (?:result|answer))\b",
    r"\bthat(?:'s| is) (?:right|correct)\b",
    r"\b(?:seems?|looks?|is|are) (?:all )?(?:correct|right|consistent|solid|good)\b",
    r"\bmatch(?:es)? (?:the|what|our|my|with|earlier)\b",
)
_PROBLEM = _any(
    r"\b(?:this|the|original) (?:math )?(?:problem|question|task) (?:here|is|was|says|states|also|gives)\b",
    r"\b(?:have|got) (?:this|a) .*problem\b",
    r"\bwe(?:'re| are) (?:given|asked|told)\b",
    r"\bI(?:'m| am) (?:given|asked|supposed to find|told)\b",
    r"\bthe (?:problem|question) .*\b(?:ask|wants)",
    r"\bread (?:it|the (?:problem|question)) again\b",
    r"^(?:given|let (?:me )?(?:restate|reread))\b",
)
_PLAN = _any(
    r"\blet me (?:try|think|see|write|start|figure|break|go|do|look|consider|find|compute|work|expand|solve)",
    r"\blet me (?:recall|take|list|number)",
    r"\blet's (?:try|think|see|start|break|go|look|consider|find|compute|calculate|tackle|denote|say|take|do|move)",
    r"\blet's (?:write|label|identify)",
    r"\b(?:I|we)(?:'ll| will| can| could| should| need to| have to| want to| might)\b",
    r"\b(?:maybe|perhaps) (?:I|we|it's better)\b",
    r"\b(?:going to|step by step|approach)\b",
    r"^(?:alternatively|another (?:way|approach))\b",
    r"^(?:next|now|then), (?:I|we|to|for|let|moving|the)\b",
    r"^(?:to|in order to) (?:find|solve|get|compute|calculate|do|determine)\b",
    r"^(?:starting|moving) (?:with|from|to|on)\b",
)
_FACT = _any(
    r"\b(?:I|we) (?:know|remember|recall|notice|learned)\b",
    r"\b(?:formula|theorem|identity|definition|property|rule|law|recurrence|sequence)\b",
    r"\brecall(?:ing)? that\b",
    r"\bis (?:defined|known|called|given by)\b",
    r"^(?:because|since|for example)\b",
    r"\b(?:in general|for any|when you|if you|always|means that|by definition)\b",
    r"\beach (?:term|of|one)\b",
    r"\ba (?:polynomial|function|triangle|number|prime|circle|square|variable)\b",
    r"\bgeneral (?:solution|form)\b",
)
_ACT = _any(
    r"\b(?:comput|calculat|simplif|substitut|divid|evaluat|solv|rearrang|replac|tak)(?:e|es|ed|y|ies|ied|ying|ing)\b",
    r"\b(?:multipl(?:y|ies|ied|ying)|plug(?:s|ged|ging)?|(?:subtract|add|expand|factor|convert)(?:s|ed|ing)?)\b",
    r"\bwhich (?:gives|is|equals)\b",
    r"\b(?:gives|becomes|equals|plus|minus|times|carry|write down)\b",
)
_RESULT = _any(
    r"^(?:so|therefore|thus|hence|in conclusion|overall|putting|in total|altogether|combining)\b",
    r"^(?:that|this) means\b",
    r"^adding (?:it|them) (?:all )?up\b",
)
_FORMULA = _any(r"[=≈<>≤≥≠]", r"\\(?:approx|leq?|geq?|neq|cdot|times|d?frac|d?binom|sum|sqrt)\b")
_EQUATION = _any(r"[=≈]", r"\\approx")
_ARITHMETIC = _any(
    r"\d\)?\s*(?:[-+*/×·÷^]|\\times|\\cdot)\s*\(?\d",
    r"\bcompute that\b",
    r"\bcalculating that\b",
)

GOES_ON = 8
"""Sentences for which a check goes on after its last announcement."""


def tag(sentences: Sequence[str]) -> list[Category]:
    """The category of each sentence of one chain of thought, given all of them in order.

    Agreement with labelled traces is moderate, see ``docs/benchmarks.md``; for a study of categories give labels.
    """
    found: list[Category] = []
    checking = 0
    for index, sentence in enumerate(sentences):
        place = index / max(1, len(sentences) - 1)
        category = _category(sentence.strip(), place, found[-1] if found else None, checking > 0)
        if _CHECK.search(sentence):
            checking = GOES_ON
        elif category in ("plan_generation", "uncertainty_management", "final_answer_emission"):
            checking = 0
        else:
            checking -= 1
        found.append(category)
    return found


def _category(text: str, place: float, previous: Category | None, checking: bool) -> Category:
    announced = _announced(text, place)
    if announced is not None:
        return announced
    if checking:
        return "self_checking"
    equations = len(_EQUATION.findall(text))
    if equations > 1 or _ARITHMETIC.search(text):
        return "active_computation"
    if _RESULT.search(text) and re.search(r"\b(?:is|are|has|have|must|can)\b", text):
        return "result_consolidation"
    if _FACT.search(text):
        return "fact_retrieval"
    if equations or (_FORMULA.search(text) and len(text) < 40) or _ACT.search(text):
        return "active_computation"
    if previous in ("problem_setup", "active_computation") and len(text) < 60:
        return previous
    return "fact_retrieval"


def _announced(text: str, place: float) -> Category | None:
    """The category that words of the sentence announce; None without any."""
    if _FINAL.search(text):
        return "final_answer_emission"
    if _DOUBT.search(text):
        return "uncertainty_management"
    if _CHECK.search(text):
        return "self_checking"
    if _PROBLEM.search(text) or (place < 0.03 and re.search(r"\b(?:find|problem)\b", text)):
        return "problem_setup"
    if place > 0.2 and _CONFIRMED.search(text):
        return "self_checking"
    if place > 0.9 and _RESULT.search(text) and re.search(r"\d", text) and not _EQUATION.search(text):
        return "final_answer_emission"
    if _PLAN.search(text) and not _ARITHMETIC.search(text) and len(_EQUATION.findall(text)) < 2:
        return "plan_generation"
    return None
