#!/usr/bin/env bash
# What the scripts of this folder share. They source it; by itself it does nothing.

# The comment at the head of the script.
manual() {
  awk 'NR == 1 { next } !/^#/ { exit } { sub(/^# ?/, ""); print }' "$0"
}

# Prints a usage error and exits with status 2.
fail() {
  printf '%s: %s\n' "${0##*/}" "$*" >&2
  exit 2
}

# need EXAMPLE NAME...: these environment variables must be set.
need() {
  local example=$1 name missing=''
  shift
  for name; do
    [[ -n ${!name-} ]] || missing="$missing${missing:+ and }$name"
  done
  [[ -z $missing ]] || fail "$missing must be set, for example: $example"
}

# whole_number NAME VALUE LEAST
whole_number() {
  if ! [[ $2 =~ ^(0|[1-9][0-9]{0,8})$ ]] || (($2 < $3)); then
    fail "$1 must be a whole number of at least $3; got '$2'."
  fi
}

# The arguments as a shell reads them, on one line.
quoted() {
  local word line='' quote="'" escaped="'\\''"
  for word; do
    case $word in
      '' | *[!A-Za-z0-9_./:=@%+,-]*) word="'${word//$quote/$escaped}'" ;;
    esac
    line="$line${line:+ }$word"
  done
  printf '%s\n' "$line"
}

is_dry() {
  [[ ${DRY_RUN:-0} != 0 ]]
}

# Runs a command; with DRY_RUN=1 prints it instead.
run_or_print() {
  if is_dry; then quoted "$@"; else "$@"; fi
}
