"""Errors a user can meet. Each message says where, what must hold, what was got and what to do."""


class EvcsError(Exception):
    """Base of every error that this project raises on purpose."""


class ConfigError(EvcsError, ValueError):
    """A configuration or an argument breaks a rule that the user can mend."""


class DataError(EvcsError, ValueError):
    """A data file or an array is missing, malformed or out of its physical range."""


class InfeasibleError(EvcsError, ValueError):
    """A problem or a plan contradicts its constraints."""


class ConvergenceError(EvcsError, RuntimeError):
    """An iteration did not reach its tolerance."""


class SolverError(EvcsError, RuntimeError):
    """A solver is missing, failed, or returned a status that proves nothing."""
