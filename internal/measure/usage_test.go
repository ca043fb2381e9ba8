package measure

import (
	"os"
	"os/exec"
	"testing"
)

func TestProcessorTime(t *testing.T) {
	for sum := 0; ProcessorTime(os.Getpid()) == 0; sum++ { // until a tick has passed
		_ = sum
	}
	if got := ProcessorTime(-1); got != 0 {
		t.Errorf("of nobody: got %v", got)
	}
	before := EndedProcessorTime()
	if err := exec.Command("true").Run(); err != nil {
		t.Fatal(err)
	}
	if got := EndedProcessorTime(); got <= before {
		t.Errorf("after a child: got %v, before %v", got, before)
	}
}

func TestTraffic(t *testing.T) {
	received, sent, err := Traffic(os.Getpid(), "lo")
	if err != nil || received != sent {
		t.Errorf("lo: got %d, %d, %v, want as much in as out", received, sent, err)
	}
	if _, _, err := Traffic(os.Getpid(), "none"); err == nil {
		t.Error("there is an interface none")
	}
}
