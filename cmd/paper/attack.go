package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sealdisk/sealdisk/cmd/paper/page"
)

// attack runs the tests of every challenge and gives what they said. A test that is not there has not passed.
func (e *evaluation) attack(ctx context.Context) ([]page.Challenge, error) {
	e.say("the tests that attack")
	said := map[string]verdict{}
	for _, g := range groups(challenges) {
		// A failed test fails the command too: what it said counts.
		text, runErr := e.run(ctx, "go", "test", "-json", "-count=1", "-timeout=240s", "-run", g.pattern(), "./"+g.folder)
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		got, err := parseTests(text)
		if err != nil || len(got) == 0 {
			return nil, fmt.Errorf("go test ./%s: %w", g.folder, errors.Join(runErr, err))
		}
		for name, v := range got {
			said[g.folder+" "+name] = v
		}
	}
	return judge(challenges, said), nil
}

// group is tests of one package that run together: whole ones, or one part of one.
type group struct {
	folder, part string
	names        []string
}

func (g group) pattern() string {
	pattern := "^(" + strings.Join(g.names, "|") + ")$"
	if g.part != "" {
		pattern += "/^" + g.part + "$"
	}
	return pattern
}

// groups gives every test once.
func groups(list []page.Challenge) (out []*group) {
	for _, c := range list {
		for _, t := range c.Tests {
			name, part, _ := strings.Cut(t.Name, "/")
			i := slices.IndexFunc(out, func(g *group) bool { return g.folder == t.Package && g.part == part })
			if i < 0 {
				i = len(out)
				out = append(out, &group{folder: t.Package, part: part})
			}
			if !slices.Contains(out[i].names, name) {
				out[i].names = append(out[i].names, name)
			}
		}
	}
	return out
}

// verdict is how a test ended.
type verdict struct {
	action string
	took   time.Duration
}

// parseTests reads what go test -json prints.
func parseTests(text string) (map[string]verdict, error) {
	ended := map[string]verdict{}
	for line := range strings.Lines(text) {
		var event struct {
			Action, Test string
			Elapsed      float64
		}
		if err := json.Unmarshal([]byte(line), &event); err != nil {
			return nil, fmt.Errorf("%q is no event of a test: %w", strings.TrimSpace(line), err)
		}
		switch event.Action {
		case "pass", "fail", "skip":
			if event.Test != "" {
				ended[event.Test] = verdict{event.Action, time.Duration(event.Elapsed * float64(time.Second))}
			}
		}
	}
	return ended, nil
}

// judge fills in the results.
func judge(list []page.Challenge, said map[string]verdict) (out []page.Challenge) {
	for _, c := range list {
		c.Tests = slices.Clone(c.Tests)
		for i := range c.Tests {
			t := &c.Tests[i]
			v, ok := said[t.Package+" "+t.Name]
			t.Passed, t.Took = v.action == "pass", v.took
			switch {
			case !ok:
				t.Problem = "no such test"
			case !t.Passed:
				t.Problem = v.action
			}
		}
		out = append(out, c)
	}
	return out
}
