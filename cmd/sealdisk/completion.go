package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/sealdisk/sealdisk/internal/daemon"
)

func completionCommand() *cli.Command {
	return &cli.Command{
		Name:        "completion",
		Usage:       "print the completion script of a shell",
		ArgsUsage:   "bash|zsh|fish",
		Description: "Completes commands, flags and the names of images.\n\nExample: . <(sealdisk completion bash)",
		BashComplete: func(c *cli.Context) {
			fmt.Fprint(c.App.Writer, "bash\nzsh\nfish\n")
		},
		Action: func(c *cli.Context) error {
			a, err := args(c, 1, 1)
			if err != nil {
				return err
			}
			script, ok := map[string]string{"bash": bashCompletion, "zsh": zshCompletion, "fish": fishCompletion}[a[0]]
			if !ok {
				return usageOf(c, "there is no completion for %q", a[0])
			}
			_, err = io.WriteString(c.App.Writer, script)
			return err
		},
	}
}

// Each script asks the program itself what may follow.
const (
	bashCompletion = `_sealdisk() {
  local cur=${COMP_WORDS[COMP_CWORD]} IFS=$'\n'
  local ask=("${COMP_WORDS[@]:0:COMP_CWORD}")
  [[ $cur == -* ]] && ask+=("$cur")
  COMPREPLY=($(compgen -W "$("${ask[@]}" --generate-bash-completion 2>/dev/null)" -- "$cur"))
}
complete -o bashdefault -o default -F _sealdisk sealdisk
`
	zshCompletion = `#compdef sealdisk
_sealdisk() {
  local -a found ask
  ask=("${(@)words[1,CURRENT-1]}")
  [[ $words[CURRENT] == -* ]] && ask+=("$words[CURRENT]")
  found=("${(@f)$("${ask[@]}" --generate-bash-completion 2>/dev/null)}")
  if [[ -n $found[1] ]]; then _describe values found; else _files; fi
}
compdef _sealdisk sealdisk
`
	fishCompletion = `function __sealdisk_complete
  set -l ask (commandline -opc)
  string match -q -- '-*' (commandline -ct); and set -a ask (commandline -ct)
  $ask --generate-bash-completion 2>/dev/null | string replace -r '^([^:]*):' '$1\t'
end
complete -c sealdisk -a '(__sealdisk_complete)'
`
)

// completeImages prints the names of the images.
func completeImages(c *cli.Context) {
	complete(c, func(ask asker) (names []string) {
		if ask(daemon.OpNames, &names) != nil {
			return nil
		}
		return names
	})
}

// asker asks the daemon for a list.
type asker func(op string, list any) error

// complete prints names, or nothing: it waits for nobody and asks nobody.
func complete(c *cli.Context, names func(ask asker) []string) {
	if err := newEnv(c); err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	conn, err := daemon.Connect(ctx, daemon.Options{Store: envOf(c).store, Home: envOf(c).home, Log: slog.New(slog.DiscardHandler), Command: "completion"})
	if err != nil {
		return
	}
	defer conn.Close()
	for _, n := range names(func(op string, list any) error { return conn.Call(ctx, op, daemon.Nothing{}, nil, list, nil) }) {
		fmt.Fprintln(c.App.Writer, n)
	}
}
