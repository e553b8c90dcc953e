#!/usr/bin/env bash
# Starts one program as several processes on this machine, which find each other over 127.0.0.1.
#
#   ./launch/local.sh --processes=2 --devices=4 -m walt.train_denoiser --config=FILE --workdir=DIR
#   ./launch/local.sh --processes=4 --gpus=0,1,2,3 -m walt.train_denoiser --config=FILE --workdir=DIR
#
# What follows the options goes to .venv/bin/python, and every process is told --coordinator, --processes and --process.
#
#   --processes=N      how many
#   --devices=D        each has D virtual CPU devices
#   --gpus=LIST        each has its share of these GPUs, in their order
#   --restarts=K       when one has died all are started again, from the newest checkpoint; at most K times: 0
#   --logs=FOLDER      process I appends to FOLDER/I.log: runs/logs
#   --grace=SECONDS    the others have to end when one has died; when one has saved, so long to save too: 60
#   --dry-run          prints the commands of one start, and runs nothing
#
# SIGTERM, SIGHUP and Ctrl-C are passed on to all as SIGTERM, upon which a run saves; a second one stops them at once.
# Then nothing is started again. If one process dies the others are stopped. The exit code is 0 if all ended with 0,
# that of the first that died, or 143 if those that did not end with 0 saved after a SIGTERM: the same command goes on
# from there.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { echo "$0: $*" >&2; exit 2; }
processes='' devices='' gpus='' restarts=0 logs=runs/logs grace=60 dry=''
while [[ $# -gt 0 ]]; do
  case $1 in
    --processes=*) processes=${1#*=} ;;
    --devices=*) devices=${1#*=} ;;
    --gpus=*) gpus=${1#*=} ;;
    --restarts=*) restarts=${1#*=} ;;
    --logs=*) logs=${1#*=} ;;
    --grace=*) grace=${1#*=} ;;
    --dry-run) dry=yes ;;
    --*) fail "there is no option $1; the options are at the top of the file" ;;
    *) break ;;
  esac
  shift
done
[[ $processes =~ ^[1-9][0-9]*$ ]] || fail "--processes is how many, 1 or more, not '$processes'"
[[ $restarts =~ ^[0-9]+$ ]] || fail "--restarts is how often, 0 or more, not '$restarts'"
[[ $grace =~ ^[0-9]+$ ]] || fail "--grace is in whole seconds, not '$grace'"
[[ -n $logs ]] || fail '--logs is a folder, and is empty'
[[ -z $devices || -z $gpus ]] || fail "either --devices=$devices or --gpus=$gpus"
if [[ -n $gpus ]]; then
  IFS=, read -ra list <<< "$gpus"
  ((${#list[@]} % processes == 0)) || fail "${#list[@]} GPUs ($gpus) are not divisible by $processes processes"
else
  [[ $devices =~ ^[1-9][0-9]*$ ]] || fail "--devices is how many each has, 1 or more, not '$devices'; or give --gpus"
fi
[[ $# -gt 0 ]] || fail 'nothing to run: give, for example, -m walt.train_denoiser and its flags'

# command_of I PORT ARGUMENTS...: what process I runs, in the array `command`.
command_of() {
  local i=$1 port=$2 share
  shift 2
  if [[ -n $gpus ]]; then
    share=$((${#list[@]} / processes))
    command=(env "CUDA_VISIBLE_DEVICES=$(IFS=,; echo "${list[*]:i * share:share}")")
  else
    command=(env JAX_PLATFORMS=cpu "JAX_NUM_CPU_DEVICES=$devices")
  fi
  command+=(.venv/bin/python "$@" "--coordinator=127.0.0.1:$port" "--processes=$processes" "--process=$i")
}

if [[ $dry ]]; then
  for ((i = 0; i < processes; i++)); do
    command_of "$i" PORT "$@"
    printf '%q ' "${command[@]}"
    printf '>> %q 2>&1\n' "$logs/$i.log"
  done
  exit
fi
[[ -x .venv/bin/python ]] || { echo 'no .venv/bin/python: run launch/install.sh first' >&2; exit 1; }
source launch/environment.sh
mkdir -p "$logs"

declare -A alive=() # process -> its id, which is also its group's
asked=''            # whether we were asked to stop
ask() { ((${#alive[@]} == 0)) || kill "${alive[@]}" 2> /dev/null || true; }
trap 'asked=yes; ask' TERM INT HUP
trap ask EXIT

# Starts all processes and waits for all; the exit code of the whole is in `code`, and that of `who` is its reason.
run() {
  local i port ended until=0 stage=working
  port=$(.venv/bin/python -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
  code=0 who=''
  for ((i = 0; i < processes; i++)); do
    command_of "$i" "$port" "$@"
    # A group of its own for each: the terminal's Ctrl-C reaches us alone, and no process twice.
    set -m
    "${command[@]}" >> "$logs/$i.log" 2>&1 < /dev/null &
    set +m
    alive[$i]=$!
  done
  [[ -z $asked ]] || ask
  while ((${#alive[@]})); do
    sleep 0.1 || true # Ctrl-C ends it too
    for i in "${!alive[@]}"; do
      if kill -0 "${alive[$i]}" 2> /dev/null; then continue; fi
      ended=0
      wait "${alive[$i]}" || ended=$?
      unset "alive[$i]"
      # What processes end with that were stopped because of another one is of no interest.
      if [[ $ended == 0 || $stage == stopping ]]; then continue; fi
      if [[ $ended != 143 ]]; then
        code=$ended who=$i stage=stopping until=$((SECONDS + grace))
        ask
      elif [[ $stage == working ]]; then
        # The others are saving too, which is not to be disturbed.
        code=143 who=$i stage=saving until=$((SECONDS + grace))
      fi
    done
    if [[ $stage == working ]] || ((SECONDS <= until)); then continue; fi
    if [[ $stage == saving ]]; then
      stage=stopping until=$((SECONDS + grace))
      ask
    else
      kill -KILL -- "${alive[@]/#/-}" 2> /dev/null || true
    fi
  done
}

for ((left = restarts; ; left--)); do
  run "$@"
  if [[ $code == 0 ]]; then exit 0; fi
  echo "process $who ended with $code; the end of $logs/$who.log:" >&2
  tail -n 10 "$logs/$who.log" | sed 's/^/  /' >&2
  if [[ $asked ]] || ((left == 0)); then exit "$code"; fi
  echo "starting all again; $left restarts are left" >&2
done
