package imagetest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"testing"
	"time"
)

// jobVariable holds a child's job; the environment is its only input but for
// the pipes that ask for a remount.
const jobVariable = "SEALDISK_IMAGETEST_JOB"

// Job is what a child does.
type Job struct {
	Do   string   // "contract", "model", "parallel", or a name that Main was given
	Args []string // for names that Main was given
	Path string   // the file
	Case string   // of "contract"
	ModelOptions

	// Remount is called in the parent whenever the child has closed its file to
	// open it again. Nil: the child opens the file again and no more.
	Remount func() error `json:"-"`
}

// Main runs the tests, or a job if this process is a child. It is for TestMain:
// os.Exit(imagetest.Main(m, nil)). More names what a job may do beside what this
// package knows.
func Main(m *testing.M, more map[string]func(args []string) error) int {
	text := os.Getenv(jobVariable)
	if text == "" {
		return m.Run()
	}
	var job Job
	err := json.Unmarshal([]byte(text), &job)
	if err == nil {
		err = job.run(more)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// Child does a job in another process of this test binary and gives its error.
func Child(ctx context.Context, job Job) error {
	text, err := json.Marshal(job)
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute+time.Duration(job.Ops)*10*time.Millisecond)
	defer cancel()
	cmd := exec.CommandContext(ctx, self)
	cmd.Env = append(os.Environ(), jobVariable+"="+string(text))
	var out bytes.Buffer
	cmd.Stderr = &out
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	served := job.serve(stdout, stdin)
	if err := cmd.Wait(); err != nil {
		return errors.Join(served, fmt.Errorf("child %s: %w\n%s", job.Do, err, bytes.TrimSpace(out.Bytes())))
	}
	return served
}

// serve remounts for each line of the child and answers it, until the child's
// end closes the pipe.
func (j Job) serve(lines io.Reader, answers io.WriteCloser) error {
	defer answers.Close()
	for in := bufio.NewScanner(lines); in.Scan(); {
		if j.Remount != nil {
			if err := j.Remount(); err != nil {
				return fmt.Errorf("remount: %w", err)
			}
		}
		if _, err := io.WriteString(answers, "done\n"); err != nil {
			return err
		}
	}
	return nil
}

// run does the job in the child.
func (j Job) run(more map[string]func(args []string) error) error {
	if f, ok := more[j.Do]; ok {
		return f(j.Args)
	}
	answers := bufio.NewScanner(os.Stdin)
	t, err := OpenFile(j.Path, 1, func() error {
		if _, err := fmt.Println("remount"); err != nil {
			return err
		}
		if !answers.Scan() {
			return io.ErrUnexpectedEOF
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := j.onTarget(t); err != nil {
		return err
	}
	return t.Close()
}

func (j Job) onTarget(t Target) error {
	switch j.Do {
	case "model":
		return Model(t, j.ModelOptions)
	case "parallel":
		return Parallel(t, j.ModelOptions)
	case "contract":
		for _, c := range Cases() {
			if c.Name == j.Case {
				return c.Check(t)
			}
		}
	}
	return fmt.Errorf("no job %q %q", j.Do, j.Case)
}
