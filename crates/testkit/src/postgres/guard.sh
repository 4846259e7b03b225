# The parent of a private PostgreSQL server, which it removes when its owner ends.
# Owns the server process and, at the end, the directory $1; the programs are in $2. Reads commands
# (init, start), one per line, from a pipe on its standard input and answers each with a line on its
# standard output. Promises that when the pipe closes, however the owner ended, the server is stopped
# at once and the directory removed. Started by guard.rs in a process group of its own, so that
# Ctrl-C reaches the owner only, and the guard through the closing pipe.
home=$1 programs=$2

# Ignored: signals of a terminal, and a pipe whose other end closes while an answer is written.
trap '' HUP INT PIPE
# Ends the read below, and with it the server.
trap : TERM

# $home/pid exists from before the server is forked until after it was reaped, so that the end of
# this script can distinguish a server that is about to run from one that has ended.
serve() {
    "$programs/postgres" -D "$home/data" </dev/null >>"$home/log" 2>&1 &
    echo "$!" >"$home/pid"
    echo "started $!"
    wait "$!"
    rm -f "$home/pid"
    echo exited
}

while read -r command; do
    case $command in
    init)
        if "$programs/initdb" -D "$home/data" -U postgres -A trust -E UTF8 --locale=C -N \
            </dev/null >>"$home/log" 2>&1; then
            echo initialized
        else
            echo exited
        fi
        ;;
    start)
        : >"$home/pid"
        serve &
        ;;
    esac
done

rounds=0
while [ -e "$home/pid" ]; do
    how=QUIT
    [ "$rounds" -lt 100 ] || how=KILL
    if read -r pid <"$home/pid"; then
        # A stopped process acts on no signal but KILL until it is continued.
        kill -s "$how" "$pid"
        kill -s CONT "$pid"
    fi
    rounds=$((rounds + 1))
    sleep 0.1
done 2>/dev/null
cd /
# Backends of a crashed server may write for a moment longer.
rm -rf "$home" 2>/dev/null || { sleep 1; rm -rf "$home"; }
