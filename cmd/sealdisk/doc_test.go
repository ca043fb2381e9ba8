package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
)

var update = flag.Bool("update", false, "rewrite docs/cli.md")

// TestDocs compares docs/cli.md with the commands.
func TestDocs(t *testing.T) {
	path := filepath.Join("..", "..", "docs", "cli.md")
	want := markdown(newApp())
	if *update {
		if err := os.WriteFile(path, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("docs/cli.md is stale: go test ./cmd/sealdisk -run TestDocs -update")
	}
}

// markdown describes the commands. It is generated so that help and page agree.
func markdown(app *cli.App) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "# sealdisk\n\nGenerated from the commands by `go test ./cmd/sealdisk -run TestDocs -update`; do not edit.\n\n")
	fmt.Fprintf(&b, "`sealdisk` %s.\n\n", app.Usage)
	fmt.Fprintf(&b, "Flags may stand anywhere. Results go to stdout, everything else to stderr as `sealdisk: message`, with a line\n`hint: …` where the user can act. Secrets are never arguments: a passphrase is asked for on the terminal, or is the\nfirst line of the file that `%s` names or of the open descriptor whose number `%s` holds.\n", passphraseFile, passphraseFD)
	fmt.Fprintf(&b, "Every command speaks to the process that has the store open, if there is one; else it opens the store itself.\n\n")
	fmt.Fprintf(&b, "## Flags of all commands\n\n")
	flagTable(&b, app.Flags)
	fmt.Fprintf(&b, "## Exit status\n\n| | |\n|---|---|\n")
	for _, e := range exits {
		fmt.Fprintf(&b, "| %d | %s |\n", e.status, e.text)
	}
	b.WriteString("\n")
	for _, c := range app.Commands {
		if c.Name != "help" {
			commandText(&b, "sealdisk", c)
		}
	}
	return b.Bytes()
}

func commandText(b *bytes.Buffer, prefix string, c *cli.Command) {
	name := prefix + " " + c.Name
	fmt.Fprintf(b, "## %s\n\n%s.\n\n", name, strings.ToUpper(c.Usage[:1])+c.Usage[1:])
	if len(c.Subcommands) == 0 {
		line := name
		if len(c.Flags) > 0 {
			line += " [flags]"
		}
		if c.ArgsUsage != "" {
			line += " " + c.ArgsUsage
		}
		fmt.Fprintf(b, "    %s\n\n", line)
	}
	text, example, _ := strings.Cut(c.Description, "Example: ")
	if text = strings.TrimSpace(text); text != "" {
		fmt.Fprintf(b, "%s\n\n", text)
	}
	flagTable(b, c.Flags)
	if example != "" {
		fmt.Fprintf(b, "Example:\n\n")
		for line := range strings.Lines(example) {
			fmt.Fprintf(b, "    %s\n", strings.TrimSpace(line))
		}
		b.WriteString("\n")
	}
	for _, s := range c.Subcommands {
		if s.Name != "help" {
			commandText(b, name, s)
		}
	}
}

func flagTable(b *bytes.Buffer, flags []cli.Flag) {
	if len(flags) == 0 {
		return
	}
	b.WriteString("| flag | |\n|---|---|\n")
	for _, f := range flags {
		d := f.(cli.DocGenerationFlag)
		placeholder, text := unquote(d.GetUsage())
		var names []string
		for _, n := range f.Names() {
			dashes := "--"
			if len(n) == 1 {
				dashes = "-"
			}
			names = append(names, strings.TrimSpace(dashes+n+" "+placeholder))
		}
		var notes []string
		if env := d.GetEnvVars(); len(env) > 0 {
			notes = append(notes, "`"+strings.Join(env, "`, `")+"`")
		}
		if v := d.GetDefaultText(); d.TakesValue() && v != "" {
			notes = append(notes, "default "+strings.Trim(v, `"`))
		}
		if len(notes) > 0 {
			text += " (" + strings.Join(notes, "; ") + ")"
		}
		fmt.Fprintf(b, "| `%s` | %s |\n", strings.Join(names, "`, `"), text)
	}
	b.WriteString("\n")
}

// unquote takes the back-quoted placeholder out of a flag's usage.
func unquote(usage string) (placeholder, text string) {
	before, rest, ok := strings.Cut(usage, "`")
	if !ok {
		return "", usage
	}
	placeholder, after, _ := strings.Cut(rest, "`")
	return placeholder, before + placeholder + after
}

// TestHelp shows that each command has what help must have.
func TestHelp(t *testing.T) {
	var check func(c *cli.Command)
	check = func(c *cli.Command) {
		if c.Usage == "" {
			t.Errorf("%s has no usage", c.Name)
		}
		if len(c.Subcommands) == 0 && !strings.Contains(c.Description, "Example: sealdisk") && !strings.Contains(c.Description, "Example: . <(sealdisk") {
			t.Errorf("%s has no example", c.Name)
		}
		for _, s := range c.Subcommands {
			check(s)
		}
	}
	for _, c := range commands() {
		check(c)
	}
}

func TestArrange(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"sealdisk", "sealdisk"},
		{"sealdisk ls --json", "sealdisk --json ls"},
		{"sealdisk import a b --link 1gbit/5ms -r x", "sealdisk import --link 1gbit/5ms -r x a b"},
		{"sealdisk import - b --store=s", "sealdisk --store=s import - b"},
		{"sealdisk recipients add a r --allow-classic", "sealdisk recipients add --allow-classic a r"},
		{"sealdisk info ls", "sealdisk info ls"},
		{"sealdisk import -- -a -b", "sealdisk import -- -a -b"},
		{"sealdisk info --bad x", "sealdisk info --bad x"},
		{"sealdisk info vm --generate-bash-completion", "sealdisk info vm --generate-bash-completion"},
	} {
		if got := strings.Join(arrange(newApp(), strings.Fields(tt.in)), " "); got != tt.want {
			t.Errorf("arrange(%q) = %q, want %q", tt.in, got, tt.want)
		}
	}
}

func TestParseSize(t *testing.T) {
	for s, want := range map[string]int64{"0": 0, "4096": 4096, "1k": 1024, "2M": 2 << 20, "3GiB": 3 << 30, "1T": 1 << 40, "8191P": 8191 << 50} {
		if got, err := parseSize(s); err != nil || got != want {
			t.Errorf("parseSize(%q) = %d, %v, want %d", s, got, err, want)
		}
	}
	for _, s := range []string{"", "-1", "1.5G", "G", "8192P", "1E", "9223372036854775808", "0x10"} {
		if got, err := parseSize(s); err == nil {
			t.Errorf("parseSize(%q) = %d, want an error", s, got)
		}
	}
}

// TestExits: no status is given twice.
func TestExits(t *testing.T) {
	seen := map[int]bool{}
	for _, e := range exits {
		if seen[e.status] {
			t.Errorf("status %d is used twice", e.status)
		}
		seen[e.status] = true
	}
}
