-- The tables of ledger format 2, as driftproof 0.1.0 made them. Never to be changed.

CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;

CREATE TABLE groups (
    dispatch INTEGER PRIMARY KEY,      -- n-th dispatch, 0-based
    prompt_index INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('leased', 'ready', 'trained')),
    worker TEXT NOT NULL,              -- who holds the lease, or who committed
    deadline REAL NOT NULL,            -- monotonic seconds
    dispatched_step INTEGER NOT NULL,  -- learner step when the lease was given
    trained_step INTEGER,              -- the step that trained it
    prompt_tokens BLOB,                -- int32
    response_tokens BLOB,              -- int32, responses one behind the other
    response_lengths BLOB,             -- int32
    rewards BLOB,                      -- float64, NaN: no reward
    finish_reasons TEXT,               -- JSON list
    problems TEXT,                     -- JSON list, NULL: none
    behavior_logprobs BLOB,            -- float32, NULL: the objective does not need them
    retokenized INTEGER,
    checksum INTEGER                   -- of the content, from prompt_tokens on; NULL where it was written in format 1
);
CREATE INDEX groups_leased ON groups (dispatch) WHERE state = 'leased';
CREATE INDEX groups_ready ON groups (dispatch) WHERE state = 'ready';
CREATE INDEX groups_trained ON groups (trained_step) WHERE state = 'trained';

CREATE TABLE steps (step INTEGER PRIMARY KEY, metrics TEXT NOT NULL);
CREATE TABLE evaluations (name TEXT NOT NULL, step INTEGER NOT NULL, result TEXT NOT NULL, PRIMARY KEY (name, step));
CREATE TABLE workers (worker TEXT PRIMARY KEY, counters TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE events (id INTEGER PRIMARY KEY, time REAL NOT NULL, step INTEGER NOT NULL, kind TEXT NOT NULL,
                     message TEXT NOT NULL);
CREATE TABLE event_kinds (kind TEXT PRIMARY KEY, count INTEGER NOT NULL, message TEXT NOT NULL) WITHOUT ROWID;
