package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"runtime/pprof"
	"runtime/trace"
	"strings"

	"github.com/urfave/cli/v2"
)

const envKey = "env" // of *env in App.Metadata

func newApp() *cli.App {
	return &cli.App{
		Name:                 "sealdisk",
		Usage:                "keeps virtual-machine disk images sealed, and shows them as ordinary files",
		Version:              version(),
		EnableBashCompletion: true,
		HideHelpCommand:      false,
		Suggest:              true,
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "store", Usage: "`DIR` of the store", EnvVars: []string{"SEALDISK_STORE"}, Value: defaultStore(), DefaultText: "/var/lib/sealdisk for root, else XDG_DATA_HOME/sealdisk"},
			&cli.StringFlag{Name: "home", Usage: "host `DIR`: identity, host key, anchor", EnvVars: []string{"SEALDISK_HOME"}, Value: defaultHome(), DefaultText: "/etc/sealdisk for root, else XDG_CONFIG_HOME/sealdisk"},
			&cli.BoolFlag{Name: "json", Usage: "print results as JSON"},
			&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "no progress and no notes"},
			&cli.StringFlag{Name: "log-level", Usage: "`LEVEL` of the log on stderr: debug, info, warn or error", Value: "warn"},
		}, profileFlags()...),
		Before: newEnv,
		After: func(c *cli.Context) error {
			if e, ok := c.App.Metadata[envKey].(*env); ok {
				return e.profiles.end()
			}
			return nil
		},
		Commands:       commands(),
		OnUsageError:   usageError,
		ExitErrHandler: func(*cli.Context, error) {},
		CommandNotFound: func(c *cli.Context, name string) {
			envOf(c).failed = usage("there is no command %q", name)
		},
		Action: func(c *cli.Context) error {
			if c.NArg() > 0 {
				return usage("there is no command %q", c.Args().First())
			}
			return cli.ShowAppHelp(c)
		},
		CustomAppHelpTemplate: cli.AppHelpTemplate + exitHelp(),
	}
}

func commands() []*cli.Command {
	list := []*cli.Command{
		initCommand(), importCommand(), exportCommand(),
		lsCommand(), infoCommand(), depsCommand(), rmCommand(), renameCommand(), resizeCommand(),
		mountCommand(), umountCommand(), snapshotCommand(), cloneCommand(), recipientsCommand(),
		peerCommand(), pullCommand(), pushCommand(), fillCommand(), bandwidthCommand(),
		migrateCommand(), leaseCommand(), serveCommand(),
		verifyCommand(), gcCommand(), statsCommand(), completionCommand(),
	}
	for _, c := range list {
		c.OnUsageError = usageError
		for _, s := range c.Subcommands {
			s.OnUsageError = usageError
		}
	}
	return list
}

func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" {
		return "(devel)"
	}
	return info.Main.Version
}

func defaultStore() string { return defaultDir("/var/lib/sealdisk", "XDG_DATA_HOME", ".local/share") }
func defaultHome() string  { return defaultDir("/etc/sealdisk", "XDG_CONFIG_HOME", ".config") }

func defaultDir(root, xdg, below string) string {
	if os.Geteuid() == 0 {
		return root
	}
	if dir := os.Getenv(xdg); filepath.IsAbs(dir) {
		return filepath.Join(dir, "sealdisk")
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "" // then the flag or the variable must say
	}
	return filepath.Join(home, below, "sealdisk")
}

// arrange lets flags stand anywhere, as users of GNU tools expect: it puts global
// flags first, then the command, its flags, and the rest. Flags that nobody knows
// stay with the command, which refuses them.
func arrange(app *cli.App, args []string) []string {
	if len(args) == 0 || args[len(args)-1] == "--generate-bash-completion" {
		return args
	}
	global, path, flags, rest := []string{args[0]}, []string{}, []string{}, []string{}
	level, known := app.Commands, []cli.Flag(nil)
	for i := 1; i < len(args); i++ {
		a := args[i]
		if a == "--" {
			rest = append(append(rest, "--"), args[i+1:]...)
			break
		}
		if len(a) < 2 || a[0] != '-' {
			if c := findCommand(level, a); c != nil && len(rest) == 0 {
				path, level, known = append(path, a), c.Subcommands, c.Flags
				continue
			}
			rest = append(rest, a)
			continue
		}
		name, _, hasValue := strings.Cut(strings.TrimLeft(a, "-"), "=")
		to, flag := &flags, findFlag(known, name)
		if flag == nil {
			if flag = findFlag(app.Flags, name); flag != nil {
				to = &global
			}
		}
		*to = append(*to, a)
		if flag != nil && takesValue(flag) && !hasValue && i+1 < len(args) {
			i++
			*to = append(*to, args[i])
		}
	}
	return append(append(append(global, path...), flags...), rest...)
}

func findCommand(list []*cli.Command, name string) *cli.Command {
	for _, c := range list {
		if c.HasName(name) {
			return c
		}
	}
	return nil
}

func findFlag(list []cli.Flag, name string) cli.Flag {
	for _, f := range list {
		for _, n := range f.Names() {
			if n == name {
				return f
			}
		}
	}
	return nil
}

func takesValue(f cli.Flag) bool {
	d, ok := f.(cli.DocGenerationFlag)
	return ok && d.TakesValue()
}

// args gives the arguments of a command, between least and most of them; most
// < 0 is no bound.
func args(c *cli.Context, least, most int) ([]string, error) {
	n := c.NArg()
	if n >= least && (most < 0 || n <= most) {
		return c.Args().Slice(), nil
	}
	want := fmt.Sprintf("%d", least)
	if most < 0 {
		want += " or more"
	} else if most > least {
		want += fmt.Sprintf(" to %d", most)
	}
	return nil, usageOf(c, "%s takes %s arguments, not %d", c.Command.HelpName, want, n)
}

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
