"""The tables of a ledger, format 3.

Every row that says something has a checksum, so that a bit that changes on disk is found: `checksum` is `row_checksum`
of the row's other columns in their order, without a lease's deadline. Events have none; their counts are kept twice.
`groups` is narrow, so that browsing and counting never touch what the groups hold; that is in `contents`, which
`content_checksum` covers.
"""

FORMAT_VERSION = 3

TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL, checksum INTEGER NOT NULL) WITHOUT ROWID;

CREATE TABLE groups (
    dispatch INTEGER PRIMARY KEY,      -- n-th dispatch, 0-based
    prompt_index INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('leased', 'ready', 'trained')),
    worker TEXT NOT NULL,              -- who holds the lease, or who committed
    dispatched_step INTEGER NOT NULL,  -- learner step when the lease was given
    weights_step INTEGER,              -- step of the newest weights then; NULL: dispatched in format 1 or 2
    trained_step INTEGER,              -- the step that trained it
    responses INTEGER,                 -- G; this and the following: NULL until it is committed
    tokens INTEGER,                    -- response tokens
    mean_reward REAL,                  -- over responses with a reward, NULL: none has
    reward_spread REAL,                -- standard deviation over the same
    truncated INTEGER,                 -- responses that used up their token budget
    failed INTEGER,                    -- responses that the engine could not write
    unrewarded INTEGER,                -- responses without a reward
    content_checksum INTEGER,          -- of its row in contents; NULL where that was written in format 1
    checksum INTEGER NOT NULL,         -- of the columns before
    deadline REAL NOT NULL             -- of the lease, monotonic seconds of this host
);
CREATE INDEX groups_leased ON groups (dispatch) WHERE state = 'leased';
CREATE INDEX groups_ready ON groups (dispatch) WHERE state = 'ready';
CREATE INDEX groups_trained ON groups (trained_step) WHERE state = 'trained';
CREATE INDEX groups_worker ON groups (worker) WHERE responses IS NOT NULL;
-- Flags stand in the orders' indexes, too: those that have one are found in order without a look at the others' rows.
CREATE INDEX groups_reward ON groups (mean_reward, dispatch, truncated, failed, unrewarded)
    WHERE mean_reward IS NOT NULL;
CREATE INDEX groups_spread ON groups (reward_spread, dispatch, truncated, failed, unrewarded)
    WHERE reward_spread IS NOT NULL;
CREATE INDEX groups_length ON groups (tokens, dispatch, truncated, failed, unrewarded) WHERE tokens IS NOT NULL;
CREATE INDEX groups_age ON groups (trained_step - 1 - dispatched_step, dispatch, truncated, failed, unrewarded)
    WHERE state = 'trained';
CREATE INDEX groups_truncated ON groups (dispatch) WHERE truncated > 0;
CREATE INDEX groups_failed ON groups (dispatch) WHERE failed > 0;
CREATE INDEX groups_unrewarded ON groups (dispatch) WHERE unrewarded > 0;

CREATE TABLE contents (                -- of the groups that are ready or trained, until they are pruned
    dispatch INTEGER PRIMARY KEY,
    prompt_tokens BLOB,                -- int32
    response_tokens BLOB,              -- int32, sequences one behind the other
    response_lengths BLOB,             -- int32, one per sequence
    rewards BLOB,                      -- float64, one per response, NaN: no reward
    finish_reasons TEXT,               -- JSON list
    problems TEXT,                     -- JSON list, NULL: none
    behavior_logprobs BLOB,            -- float32, one per trained token, NULL: the objective does not need them
    retokenized INTEGER,
    trained_mask BLOB,                 -- one bit per response token, NULL: all are trained
    sequence_of BLOB,                  -- int32, each sequence's response, NULL: one each
    facts TEXT                         -- JSON object of the episode, NULL: none
);

CREATE TABLE steps (step INTEGER PRIMARY KEY, metrics TEXT NOT NULL, checksum INTEGER NOT NULL);
CREATE TABLE evaluations (name TEXT NOT NULL, step INTEGER NOT NULL, result TEXT NOT NULL, checksum INTEGER NOT NULL,
                          PRIMARY KEY (name, step));
CREATE TABLE workers (worker TEXT PRIMARY KEY, counters TEXT NOT NULL, checksum INTEGER NOT NULL) WITHOUT ROWID;
"""
EVENTS = """
CREATE TABLE events (id INTEGER PRIMARY KEY, time REAL NOT NULL, step INTEGER NOT NULL, kind TEXT NOT NULL,
                     message TEXT NOT NULL);
CREATE TABLE event_kinds (kind TEXT PRIMARY KEY, count INTEGER NOT NULL, message TEXT NOT NULL) WITHOUT ROWID;
"""
SCHEMA = TABLES + EVENTS

ROW = (
    "dispatch", "prompt_index", "state", "worker", "dispatched_step", "weights_step", "trained_step",
    "responses", "tokens", "mean_reward", "reward_spread", "truncated", "failed", "unrewarded", "content_checksum",
)  # fmt: skip
"""Columns of `groups` that its checksum covers, in their order."""
STATE, TRAINED_STEP = ROW.index("state"), ROW.index("trained_step")

CONTENT = (
    "prompt_tokens", "response_tokens", "response_lengths", "rewards", "finish_reasons", "problems",
    "behavior_logprobs", "retokenized", "trained_mask", "sequence_of", "facts",
)  # fmt: skip
"""Columns of `contents` behind the dispatch number, in their order."""
