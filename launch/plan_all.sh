#!/usr/bin/env bash
# Plans every configuration of the paper's size for a slice that holds it, one row each: fits, step time, MFU, days.
#
#   ./launch/plan_all.sh [CHIP ...]       chips: v5p v6e, both by default
#
# Nothing but the compiler is needed, the extra `tpu` of setup.py (libtpu). A row takes one to ten minutes, of a
# tokenizer half an hour and more. The whole plans, with collectives and what the time goes to, are in the folder PLANS
# (runs/plans).
set -euo pipefail
cd "$(dirname "$0")/.."

python=$PWD/.venv/bin/python plans=${PLANS:-runs/plans}
[[ -x $python ]] || { echo "no $python: run launch/install.sh first" >&2; exit 1; }
[[ $# -gt 0 ]] || set -- v5p v6e
mkdir -p "$plans"

# configuration, its slice of v5p, its slice of v6e
slices() {
  cat <<'END'
walt_ucf101_l         2x2x4  4x8
walt_ucf101_xl        2x2x4  8x8
walt_k600_l           4x4x4  8x16
walt_imagenet_l       4x4x4  8x16
walt_t2v_l_joint      4x4x4  8x16
walt_t2v_base         4x4x4  16x16
walt_t2v_base_9x16    4x4x4  16x16
walt_t2v_sr1          4x4x4  16x16
walt_t2v_sr2          4x8x8  16x16
dit_imagenet_b4       2x2x4  4x4
dit_imagenet_xl2      2x2x4  4x8
dit_packed            4x4x4  8x8
walt_packed           4x4x4  8x16
tokenizer_imagenet    4x4x4  8x8
tokenizer_ucf101      4x4x4  16x16
tokenizer_k600        4x4x4  16x16
tokenizer_t2v         4x4x4  16x16
END
}

titled=
for chip; do
  case $chip in
    v5p) column=2 ;;
    v6e) column=3 ;;
    *) echo "usage: $0 [CHIP ...], chips are v5p v6e, not '$chip'" >&2; exit 2 ;;
  esac
  while read -r name size; do
    plan=$plans/$name-$chip-$size.txt
    "$python" -m walt.plan --config="configs/$name.py" --topology="$chip:$size" --phase=train --phase=restore \
      > "$plan" 2> "$plan.log" || { echo "$name on $chip:$size failed: see $plan.log" >&2; continue; }
    [[ -n $titled ]] || printf '%-20s %s\n' configuration "$(sed -n 1p "$plan")"
    titled=yes
    printf '%-20s %s\n' "$name" "$(sed -n 2p "$plan")"
  done < <(slices | awk -v column="$column" '{print $1, $column}')
done
