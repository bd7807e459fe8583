#!/bin/sh
# A rollout worker in two calls: sh rollout_worker.sh RUN, beside `driftproof inbox RUN`. It answers 7 to everything.
set -eu
run=$1
url=$(sed 's/.*"url": "\([^"]*\)".*/\1/' "$run/inbox.json")

call() { # The token goes in by a pipe: an argument could be read in the list of processes.
    path=$1 && shift
    # An inbox holds this lock as long as it lives; whoever has its port afterwards must not get the token.
    flock -n "$run/inbox.lock" true && held=0 || held=$?
    [ "$held" = 1 ] || { echo "$run has no inbox; start it: driftproof inbox $run" >&2; exit 1; }
    printf 'header = "Authorization: Bearer %s"' "$(cat "$run/inbox.token")" |
        curl -sS --fail-with-body -K - -H 'Content-Type: application/json' "$url$path" "$@"
}

while :; do
    prompts=$(call '/prompts?n=1&worker=curl')
    case $prompts in *'"state":"running"'*) ;; *) exit 0 ;; esac
    dispatch=$(echo "$prompts" | grep -o '"dispatch":[0-9]*') || { sleep 1; continue; }
    samples=$(echo "$prompts" | grep -o '"samples":[0-9]*' | cut -d: -f2)
    responses=$(yes '{"text": "7", "finish_reason": "stop"}' | head -n "$samples" | paste -sd, -)
    call /groups -d "{\"groups\": [{$dispatch, \"worker\": \"curl\", \"responses\": [$responses]}]}"
done
