"""From a passed verdict to the champion, every effect beside its undo.

Guarantees:
    1. Nothing but a passed verdict promotes.
    2. Promotion is compare-and-set under a lock: whoever decided on an older champion is refused.
    3. A run that was already promoted is recognised and not promoted again.
"""
