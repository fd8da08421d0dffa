"""The policy, told in order: requests, candidates, judgements, promotions. Prefect lives here, and only here."""

import warnings

from scapre.errors import UnlearningWarning

# commands tell of what is doubtful in words of their own, and logs that are kept hold no names
warnings.filterwarnings("ignore", category=UnlearningWarning)
