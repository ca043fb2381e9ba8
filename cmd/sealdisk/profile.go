package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/pprof"
	"runtime/trace"

	"github.com/urfave/cli/v2"
)

// profileFlags are for who wants to know where the time goes.
func profileFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "cpuprofile", Usage: "write a CPU profile of this process to `FILE`, for go tool pprof"},
		&cli.StringFlag{Name: "trace", Usage: "write a trace of this process to `FILE`, for go tool trace"},
	}
}

// profiles are the recordings that run beside a command.
type profiles struct{ ends []func() error }

// begin starts what the flags ask for.
func (p *profiles) begin(c *cli.Context) error {
	if path := c.String("cpuprofile"); path != "" {
		if err := p.record(path, pprof.StartCPUProfile, pprof.StopCPUProfile); err != nil {
			return fmt.Errorf("--cpuprofile: %w", err)
		}
	}
	if path := c.String("trace"); path != "" {
		if err := p.record(path, trace.Start, trace.Stop); err != nil {
			return fmt.Errorf("--trace: %w", err)
		}
	}
	return nil
}

// end closes the recordings.
func (p *profiles) end() error {
	var errs []error
	for _, end := range p.ends {
		errs = append(errs, end())
	}
	p.ends = nil
	return errors.Join(errs...)
}

func (p *profiles) record(path string, start func(w io.Writer) error, stop func()) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	if err := start(f); err != nil {
		return errors.Join(err, f.Close())
	}
	p.ends = append(p.ends, func() error {
		stop()
		return f.Close()
	})
	return nil
}
