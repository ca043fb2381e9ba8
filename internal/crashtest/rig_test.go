package crashtest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	patience = 2 * time.Minute // for one command or start, on a machine that is busy
	imageMB  = 32
	sectors  = imageMB << 20 / sectorSize
)

// rig is one store and the daemon that serves it.
type rig struct {
	store, home, mnt string
	daemon           *exec.Cmd
	log              *tail
	up               chan time.Duration // how long the mount took
	ended            chan error
}

func newRig(base, mnt string) *rig {
	return &rig{store: filepath.Join(base, "store"), home: filepath.Join(base, "home"), mnt: mnt}
}

func (r *rig) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, sealdisk, args...)
	cmd.Env = append(os.Environ(), "SEALDISK_STORE="+r.store, "SEALDISK_HOME="+r.home)
	return cmd
}

// run runs a command of the program.
func (r *rig) run(args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := r.command(ctx, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return out, fmt.Errorf("sealdisk %s: %w\n%s%s", strings.Join(args, " "), err, out, stderr.Bytes())
	}
	return out, nil
}

// tail keeps the end of a log and looks for the line that says that the mount is up.
type tail struct {
	mu    sync.Mutex
	lines []string
}

func (t *tail) add(line string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.lines = append(t.lines, line); len(t.lines) > 60 {
		t.lines = t.lines[1:]
	}
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.Join(t.lines, "\n")
}

// begin starts the daemon and does not wait for it.
func (r *rig) begin() error {
	r.log, r.up, r.ended = &tail{}, make(chan time.Duration, 1), make(chan error, 1)
	cmd := r.command(context.Background(), "mount", r.mnt)
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return err
	}
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return err
	}
	r.daemon = cmd
	log, up, ended := r.log, r.up, r.ended
	go func() {
		for in := bufio.NewScanner(stderr); in.Scan(); {
			if strings.HasPrefix(in.Text(), "sealdisk: mounted at ") {
				up <- time.Since(start)
			}
			log.add(in.Text())
		}
		ended <- cmd.Wait()
	}()
	return nil
}

// start starts the daemon and returns how long it took until the mount was up.
func (r *rig) start() (time.Duration, error) {
	if err := r.begin(); err != nil {
		return 0, err
	}
	select {
	case took := <-r.up:
		return took, nil
	case err := <-r.ended:
		r.ended <- err
		return 0, fmt.Errorf("the daemon ended: %w\n%s", errors.Join(err), r.log)
	case <-time.After(patience):
		return 0, errors.Join(fmt.Errorf("no mount after %v\n%s", patience, r.log), r.kill())
	}
}

// running tells whether the daemon has been started and has not ended.
func (r *rig) running() bool {
	if r.daemon == nil {
		return false
	}
	select {
	case err := <-r.ended:
		r.ended <- err
		return false
	default:
		return true
	}
}

// kill ends the daemon with SIGKILL and takes its mount away.
func (r *rig) kill() error {
	if err := r.daemon.Process.Kill(); err != nil {
		return fmt.Errorf("the daemon had ended before: %w\n%s", err, r.log)
	}
	err := <-r.ended
	r.daemon = nil
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		return fmt.Errorf("the daemon ended by itself: %v\n%s", err, r.log)
	}
	return r.detach()
}

// detach takes a dead mount away, if there is one.
func (r *rig) detach() error {
	table, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return err
	}
	if !strings.Contains(string(table), " "+r.mnt+" ") {
		return nil
	}
	if out, err := exec.Command("fusermount3", "-uz", r.mnt).CombinedOutput(); err != nil {
		return fmt.Errorf("fusermount3: %w: %s", err, out)
	}
	return nil
}

// end unmounts as a user would, and expects the daemon to end well.
func (r *rig) end() error {
	if _, err := r.run("umount", r.mnt); err != nil {
		return fmt.Errorf("%w\n%s", err, r.log)
	}
	select {
	case err := <-r.ended:
		r.daemon = nil
		if err != nil {
			return fmt.Errorf("the daemon ended: %w\n%s", err, r.log)
		}
		return nil
	case <-time.After(patience):
		return errors.Join(errors.New("the daemon does not end"), r.kill())
	}
}

// listed are the images and the snapshots, as NAME and NAME@SNAP, that ls tells of.
func (r *rig) listed() (map[string]bool, error) {
	out, err := r.run("--json", "ls")
	if err != nil {
		return nil, err
	}
	var images []struct {
		Name      string
		Snapshots []string
	}
	if err := json.Unmarshal(out, &images); err != nil {
		return nil, fmt.Errorf("ls: %w: %s", err, out)
	}
	names := make(map[string]bool)
	for _, i := range images {
		names[i.Name] = true
		for _, s := range i.Snapshots {
			names[i.Name+"@"+s] = true
		}
	}
	return names, nil
}

// ask runs a child on a file of the mount.
func (r *rig) ask(role, name string) ([]byte, error) {
	cmd := child(role, filepath.Join(r.mnt, name))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w: %s\n%s", role, name, err, stderr.Bytes(), r.log)
	}
	return out, nil
}

// read tells what each sector of a file holds.
func (r *rig) read(name string) ([]found, error) {
	out, err := r.ask("read", name)
	if err != nil {
		return nil, err
	}
	return parseFound(out)
}

// writing is a child that writes.
type writing struct {
	cmd  *exec.Cmd
	done chan error // after its last line
}

func (r *rig) write(m *model, seed uint64) (*writing, error) {
	cmd := child("write", filepath.Join(r.mnt, imageName), fmt.Sprint(sectors), fmt.Sprint(m.newest()), fmt.Sprint(seed))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	w := &writing{cmd, make(chan error, 1)}
	go func() {
		var bad error
		for in := bufio.NewScanner(out); in.Scan(); {
			bad = errors.Join(bad, m.line(in.Text()))
		}
		w.done <- errors.Join(bad, cmd.Wait())
	}()
	return w, nil
}
