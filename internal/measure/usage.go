package measure

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// tick is the unit of times in /proc.
const tick = 10 * time.Millisecond

// ProcessorTime is what a process has used so far, in user mode and in the kernel; 0 if it has gone.
func ProcessorTime(pid int) time.Duration {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(text), ") ") // the name ends there
	f := strings.Fields(rest)
	if len(f) < 13 {
		return 0
	}
	user, _ := strconv.ParseInt(f[11], 10, 64)
	system, _ := strconv.ParseInt(f[12], 10, 64)
	return time.Duration(user+system) * tick
}

// EndedProcessorTime is what all children of this process have used that have ended and were waited for.
func EndedProcessorTime() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_CHILDREN, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// Traffic is how many bytes have gone through an interface of the network that a process is in.
func Traffic(pid int, device string) (received, sent int64, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/dev", pid))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(text)) {
		name, rest, ok := strings.Cut(strings.TrimSpace(line), ":")
		if f := strings.Fields(rest); ok && name == device && len(f) > 8 {
			received, _ = strconv.ParseInt(f[0], 10, 64)
			sent, _ = strconv.ParseInt(f[8], 10, 64)
			return received, sent, nil
		}
	}
	return 0, 0, fmt.Errorf("no interface %s", device)
}
