# guest.sh: what runs in the guest of ./demo. Sent over the console by session.py. Lines that begin with @ are for it.
echo "$(uname -sr), root file system on $(lsblk -dno MODEL /dev/nvme0n1 | xargs) nvme0n1, passed through"
taskset -c 1 /lab/heartbeat &
beat=$!
echo '$ fio --rw=randrw --verify=crc32c ...'
taskset -c 0 fio --name=demo --filename=/root/demo.dat --size=32M --rw=randrw --bs=4k --iodepth=1 --ioengine=libaio \
--direct=1 --verify=crc32c --verify_backlog=64 --verify_fatal=1 --time_based --runtime=FIO_SECONDS \
--eta=always --eta-interval=3s --eta-newline=3s --output=/tmp/fio.json --output-format=json 2>&1
echo "@fio $?"
kill $beat
sync
jq -c '.jobs[0] | {error, reads: .read.total_ios, writes: .write.total_ios, slowest_ns: ([.read.clat_ns.max, .write.clat_ns.max] | max)}' /tmp/fio.json | sed 's/^/@result /'
count() { awk '/nvme/ { n = 0; for (i = 2; i < NF; i++) if ($i ~ /^[0-9]+$/) n += $i; printf "%s:%d ", $NF, n }' /proc/interrupts; }
count >/tmp/after
for try in 1 2 3 4 5 6 7 8; do
sleep 0.3
count >/tmp/before
nvme get-feature /dev/nvme0 -f 7 >/dev/null
count >/tmp/after
io() { tr ' ' '\n' <"$1" | grep -v q0:; }
[ "$(io /tmp/before)" = "$(io /tmp/after)" ] && break
done
echo "@interrupts $try $(cat /tmp/before)"
dmesg | grep -iE 'nvme.*(timeout|reset|abort|polled|fail|error)|I/O error|EXT4-fs (error|warning)|BUG:|WARNING:|Call Trace|rcu.*stall|lockup|blocked for more|nobody cared' | sed 's/^/@complaint /'
echo "@log $(dmesg | wc -l)"
uptime
echo @done
stty echo # returns when all output has been sent; the end of the session would drop what has not
