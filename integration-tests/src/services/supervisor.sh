# Watches over one private server, so that nothing outlives the test process, however that ends.
# $1: name for the directory. $2: account that shall own the directory, or nothing.
# Standard input is held open by the test process; each line is a command. End of input: clean up.
umask 077
dir=$(mktemp -d "${TMPDIR:-/tmp}/outbox-test-$1.XXXXXX") || exit 1
if [ -n "$2" ]; then chown "$2" "$dir" || exit 1; fi
server=

# A service may replace this by what its server wants done before it is killed.
farewell() { :; }

leave() {
    trap '' HUP INT TERM
    if [ -e "$dir/keep" ]; then exit 0; fi
    farewell
    # Servers put their children into sessions of their own, so a process group is not enough.
    # Each found process is stopped at once: a stopped parent forks no further children.
    family=" $$ " grown=yes
    while [ -n "$grown" ]; do
        grown=
        for stat in /proc/[0-9]*/stat; do
            { read -r line <"$stat"; } 2>/dev/null || continue
            pid=${line%% *} line=${line##*) }
            line=${line#? }
            parent=${line%% *}
            case $family in *" $pid "*) continue ;; esac
            case $family in *" $parent "*)
                kill -STOP "$pid" 2>/dev/null
                family="$family$pid " grown=yes ;;
            esac
        done
    done
    for pid in $family; do
        [ "$pid" = $$ ] || kill -KILL "$pid" 2>/dev/null
    done
    wait
    # A killed grandchild may still be closing its files.
    rm -rf "$dir" 2>/dev/null || { sleep 0.2; rm -rf "$dir"; }
}
trap 'leave; exit 1' HUP INT TERM

echo "$dir"
while IFS= read -r command; do eval "$command"; done
leave
