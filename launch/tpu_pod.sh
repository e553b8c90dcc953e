#!/usr/bin/env bash
# Trains on a Cloud TPU slice, or several, from anywhere that has gcloud: creates a queued resource or takes the one
# that is there, waits for it, installs, starts the same command on all workers, and goes on after preemptions.
#
#   ./launch/tpu_pod.sh run -m walt.train_denoiser --config=FILE --workdir=/mnt/walt/DIR
#   ./launch/tpu_pod.sh logs             logs of all workers -> runs/tpu/NAME/NODE/WORKER.log
#   ./launch/tpu_pod.sh stop             asks the run to save and end; interrupt `run` first, which starts it again
#   ./launch/tpu_pod.sh delete           gives the slice back; what is on the share stays
#
# What follows `run` goes to .venv/bin/python of the workers, which is told --distributed=auto besides. With --dry-run
# before that word the commands are printed, with what they depend on, and nothing is run.
#
#   NAME           of the queued resource and its nodes       ZONE      for example us-east5-a
#   ACCELERATOR    v5p-128, v5litepod-256, v6e-64, ...        PROJECT   gcloud's own by default
#   SHARE          HOST:/PATH, an NFS export                  MOUNT     where workers see it: /mnt/walt
#   SLICES         how many: 1                                SPOT      yes: cheaper, may be preempted
#   RUNTIME        software of the machines: by ACCELERATOR   PREPARE   a command for each worker before it installs
#   RESTARTS       after a crash, in all: 3                   EVERY     seconds between looks at the run: 60
#
# The workdir has to be on the share. walt writes with ordinary file calls and not to gs:// paths, and a bucket that is
# mounted (gcsfuse) is no place for it either: a file that stays open, as metrics.jsonl does, is uploaded when it is
# closed, so a preempted run loses it, and in a bucket without a hierarchical namespace the rename that completes a
# checkpoint is not atomic. Filestore is such a share. To read data from a bucket, mount it in PREPARE; that command is
# for all to see on the workers, so it is no place for a secret.
#
# The working tree goes to the workers as git sees it: the files it tracks, with their changes. A queued resource that
# is SUSPENDED or FAILED is deleted and created anew. Exit code 143 of the workers means saved after a SIGTERM: they are
# started again, from the newest checkpoint; after another code RESTARTS times. `run` may be interrupted: the workers do
# not notice, and the same command finds them. At the end the slice is still there, and costs, until it is deleted.
set -euo pipefail

fail() { echo "launch/tpu_pod.sh: $*" >&2; exit 2; }

quoted() { local words; printf -v words '%q ' "$@"; echo "${words% }"; }

# On a worker, in its copy of the repository. `install` may be repeated, and `start` of a run that is there changes
# nothing: gcloud tries again over a bad line.
if [[ ${1:-} == worker ]]; then
  cd "$(dirname "$0")/.."
  folder=${STATE:-$HOME/walt-run}
  running() { [[ -f $folder/pid && ! -f $folder/code ]] && kill -0 "$(< "$folder/pid")" 2> /dev/null; }
  case ${2:-} in
    install) # SHARE MOUNT PREPARE
      if ! mountpoint -q "$4"; then
        apt=(sudo apt-get -q -o DPkg::Lock::Timeout=600)
        "${apt[@]}" update
        "${apt[@]}" install -y nfs-common
        sudo mkdir -p "$4"
        sudo mount -t nfs "$3" "$4"
      fi
      [[ -w $4 ]] || sudo chmod a+rwx "$4"
      [[ -z $5 ]] || bash -c "$5"
      # The machines' own Python is older than walt needs.
      if [[ ! -x .venv/bin/python ]] && ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        python3 -m pip install --quiet --user uv
        python3 -m uv python install --quiet 3.12
        PYTHON=$(python3 -m uv python find 3.12)
        export PYTHON
      fi
      ./launch/install.sh tpu
      ;;
    start) # MOUNT ARGUMENTS...
      if running; then exit; fi
      mkdir -p "$folder"
      rm -f "$folder/pid" "$folder/code"
      # Compiled programs are kept on the share too, where a new slice finds them.
      export JAX_COMPILATION_CACHE_DIR=$3/.cache/jax
      source launch/environment.sh
      # In a session of its own, which outlives the connection. The shell outlives a signal to the session, and writes
      # what the program ended with.
      # shellcheck disable=SC2016
      setsid bash -c 'trap : TERM; echo $$ > "$0/pid"; .venv/bin/python "$@"; echo $? > "$0/code"' \
        "$folder" "${@:4}" --distributed=auto >> "$folder/log" 2>&1 < /dev/null &
      until [[ -s $folder/pid ]]; do sleep 0.1; done
      ;;
    state)
      if running; then echo 'worker: running'; else echo "worker: $(cat "$folder/code" 2> /dev/null || echo none)"; fi
      ;;
    stop)
      if running; then kill -- "-$(< "$folder/pid")"; fi
      ;;
    *) fail "a worker can install, start, state and stop, not '${2:-}'" ;;
  esac
  exit
fi

cd "$(dirname "$0")/.."
dry=''
if [[ ${1:-} == --dry-run ]]; then
  dry=yes
  shift
fi
what=${1:-}
[[ $what =~ ^(run|logs|stop|delete)$ ]] || fail "say run, logs, stop or delete, not '$what'"
shift
needed=(NAME ZONE)
[[ $what != run ]] || needed+=(ACCELERATOR SHARE)
for name in "${needed[@]}"; do
  [[ ${!name:-} ]] || fail "set $name: the variables are at the top of the file"
done
# shellcheck disable=SC2153
where=("$NAME" "--zone=$ZONE" ${PROJECT:+"--project=$PROJECT"})
resources=(gcloud --quiet compute tpus queued-resources)
mount=${MOUNT:-/mnt/walt} slices=${SLICES:-1} every=${EVERY:-60} restarts=${RESTARTS:-3}
for number in "$slices" "$every" "$restarts"; do
  [[ $number =~ ^[0-9]+$ ]] || fail "SLICES, EVERY and RESTARTS are numbers, not '$number'"
done

step() { if [[ $dry ]]; then quoted "$@"; else "$@"; fi; }
note() { if [[ $dry ]]; then echo "# $*"; fi; }
say() { echo "$(date '+%F %T') $NAME: $*" >&2; }
# A command on every worker of every slice.
on_workers() { step "${resources[@]}" ssh "${where[@]}" --node=all --worker=all --command="$1"; }
worker() { on_workers "cd walt && $(quoted ./launch/tpu_pod.sh worker "$@")"; }

# The state of the queued resource, nothing if there is none.
resource() {
  step "${resources[@]}" list "${where[@]:1}" "--filter=name ~ \"(^|/)$NAME\$\"" '--format=value(state.state)'
}
create() {
  local nodes=("--node-id=$NAME")
  ((slices == 1)) || nodes=("--node-count=$slices" "--node-prefix=$NAME")
  step "${resources[@]}" create "${where[@]}" "${nodes[@]}" "--accelerator-type=$ACCELERATOR" \
    "--runtime-version=$runtime" ${SPOT:+--spot}
}
delete() { step "${resources[@]}" delete "${where[@]}" --force; }
# To be used in conditions, where `set -e` is off: each line is a condition too.
install() {
  local tree=HEAD archive=.cache/tpu_pod/$NAME.tar.gz
  if [[ ! $dry ]]; then
    mkdir -p .cache/tpu_pod
    tree=$(git stash create) || return # a commit of the tracked files as they are; nothing where that is HEAD
  fi
  step git archive --format=tar.gz "--output=$archive" "${tree:-HEAD}" &&
    step "${resources[@]}" scp "$archive" "$NAME:walt.tar.gz" "${where[@]:1}" --node=all --worker=all &&
    on_workers 'mkdir -p walt && tar -xzf walt.tar.gz -C walt' &&
    worker install "$SHARE" "$mount" "${PREPARE:-}"
}
# What the workers say: running, an exit code, or none where nothing was started.
workers() { on_workers 'if [ -d walt ]; then walt/launch/tpu_pod.sh worker state; else echo worker: none; fi'; }
logs() {
  local node
  for ((node = 0; node < slices; node++)); do
    step mkdir -p "runs/tpu/$NAME/$node"
    step "${resources[@]}" ssh "${where[@]}" "--node=$node" --worker=all --command='cat walt-run/log' \
      "--output-directory=runs/tpu/$NAME/$node"
  done
}

case $what in
  logs) logs ;;
  stop) worker stop ;;
  delete) delete ;;
esac
[[ $what == run ]] || exit 0

[[ $# -gt 0 ]] || fail 'give what to run, for example -m walt.train_denoiser and its flags'
for argument; do
  [[ $argument != --workdir=* || $argument == --workdir="$mount"/* ]] ||
    fail "$argument is not on the share, which is at $mount: see the top of the file"
done
case ${RUNTIME:-}/$ACCELERATOR in
  ?*/*) runtime=$RUNTIME ;;
  /v6e-*) runtime=v2-alpha-tpuv6e ;;
  /v5p-*) runtime=v2-alpha-tpuv5 ;;
  /v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
  /v4-*) runtime=tpu-ubuntu2204-base ;;
  *) fail "which software ACCELERATOR=$ACCELERATOR takes is not known here: set RUNTIME" ;;
esac

if [[ $dry ]]; then
  note "every $every s:"
  resource
  note 'if there is none:'
  create
  note 'if it is SUSPENDED or FAILED:'
  delete
  note 'if it is ACTIVE:'
  workers
  note 'if nothing runs on it yet:'
  install
  worker start "$mount" "$@"
  note "if all have ended, some of them with 143; or with another code, $restarts times:"
  worker start "$mount" "$@"
  note 'at the end:'
  logs
  exit
fi

finish() {
  logs
  say "$1; logs are in runs/tpu/$NAME. The slice is still there, and costs: launch/tpu_pod.sh delete"
  exit "$2"
}
resource > /dev/null # once, where an error of gcloud ends this: later ones may pass
known='' new='' started='' crashes=0
for (( ; ; )); do
  if ! now=$(resource); then
    say 'gcloud does not answer'
    now=unknown
  fi
  [[ $now == "$known" ]] || say "is ${now:-not there}"
  known=$now
  case $now in
    '')
      create
      new=yes
      ;;
    SUSPENDED | FAILED)
      [[ ! $new ]] || fail "a new request is $now: gcloud compute tpus queued-resources describe ${where[*]} tells why"
      delete
      ;;
    ACTIVE)
      new=''
      # A worker that cannot be reached is about to be preempted, or soon there again.
      if ! said=$(workers); then said=''; fi
      codes=$(grep -o '^worker: .*' <<< "$said" | sort -u | cut -d ' ' -f 2 | tr '\n' ' ' || true)
      case " $codes" in
        ' ') say 'workers do not answer' ;;
        *' running '*) started=yes ;;
        *' none '*) started='' ;;& # a new machine
        *)
          if [[ ! $started ]]; then
            if install && worker start "$mount" "$@"; then started=yes; else say 'could not be started'; fi
          elif [[ $codes == '0 ' ]]; then
            finish 'the run is complete' 0
          else
            [[ $codes =~ ^(0 )?143\ $ ]] || crashes=$((crashes + 1))
            say "workers ended with ${codes% }"
            ((crashes <= restarts)) || finish "crashed $crashes times" 1
            worker start "$mount" "$@" || say 'could not be started'
          fi
          ;;
      esac
      ;;
  esac
  sleep "$every"
done
