package main

import (
	"path/filepath"
	"reflect"
	"strings"
	"time"

	"github.com/alecthomas/kong"

	"github.com/layerpipe/layerpipe/cmd/internal/cli"
	"github.com/layerpipe/layerpipe/pkg/source"
)

// attachFlags are for the kernel's side: devices and mounts.
type attachFlags struct {
	Attach       device        `json:"-" placeholder:"/dev/nbdN" help:"Attach to the kernel's NBD driver, as any device that is free or with --attach=/dev/nbdN as that one, and print its name."`
	Mount        string        `json:"-" placeholder:"DIR" help:"Attach, mount on DIR, and serve until it is unmounted. SIGTERM unmounts and detaches; a second one does not wait for those who still use it."`
	MountOptions string        `short:"o" placeholder:"OPTIONS" help:"For the mount, as mount -o takes them (nosuid,nodev,...)."`
	Daemon       bool          `json:"-" help:"Go to the background when all is ready; the exit code says whether it is."`
	DeadTimeout  time.Duration `json:"-" default:"24h" placeholder:"TIME" help:"If this server dies: how long reads wait for another one before they fail (default ${default})."`
	List         bool          `json:"-" help:"List the devices, their servers and mounts."`
	Reattach     string        `json:"-" placeholder:"nbdN|DIR|all" help:"Take over the device of a server that has died, or those of all."`
	Detach       string        `json:"-" placeholder:"nbdN|DIR" help:"Unmount and detach."`
	Force        bool          `json:"-" help:"Detach what is in use: reads fail from then on."`
	StateDir     string        `json:"-" default:"/run/layerpipe" placeholder:"DIR" help:"Where it is kept what a reattach needs (default ${default})."`
}

// A device is a flag that may have a value.
type device struct {
	set  bool
	name string
}

var _ kong.BoolMapperValue = (*device)(nil)

// IsBool lets the flag stand alone.
func (d *device) IsBool() bool { return true }

// Decode takes the value from behind the "=", if there is one.
func (d *device) Decode(ctx *kong.DecodeContext) error {
	d.set = true
	if ctx.Scan.Peek().Type == kong.FlagValueToken {
		s, ok := ctx.Scan.Pop().Value.(string)
		if !ok || s == "" {
			return cli.Usagef("--attach=: give /dev/nbdN, or leave out the =")
		}
		d.name = s
	}
	return nil
}

// attaching reports whether the kernel is to be the client.
func (f *flags) attaching() bool { return f.Attach.set || f.Mount != "" || f.Reattach != "" }

// action is the flag that needs nothing to serve, or "".
func (f *flags) action() string {
	switch {
	case f.List:
		return "--list"
	case f.Detach != "":
		return "--detach"
	case f.Reattach != "":
		return "--reattach"
	}
	return ""
}

// checkAttach looks for flags that do not go together.
func (f *flags) checkAttach() error {
	actions := 0
	for _, set := range []bool{f.List, f.Detach != "", f.Reattach != ""} {
		if set {
			actions++
		}
	}
	serves := f.Image != "" || f.Index != "" || len(f.Blob) > 0
	switch a := f.action(); {
	case actions > 1:
		return cli.Usagef("only one of --list, --detach and --reattach")
	case a != "" && (serves || f.Attach.set || f.Mount != "" || f.MountOptions != ""):
		return cli.Usagef("%s goes without anything to serve, attach or mount: what is attached knows that", a)
	case f.Force && f.Detach == "":
		return cli.Usagef("--force is for --detach")
	case f.MountOptions != "" && f.Mount == "":
		return cli.Usagef("--mount-options needs --mount")
	case f.attaching() && (f.Listen != "" || f.Run != "" || f.TLSCert != ""):
		return cli.Usagef("a device is served to the kernel alone: without --listen, --run and TLS")
	case f.Daemon && f.Run != "":
		return cli.Usagef("--daemon or --run, not both")
	case f.Daemon && (f.List || f.Detach != ""):
		return cli.Usagef("--daemon is for a server")
	case (f.Daemon || f.Reattach == "all") && isDescriptor(f.AuthFile):
		return cli.Usagef("--authfile %s: a daemon does not have it, give a file", f.AuthFile)
	case f.attaching() && f.DeadTimeout < time.Second:
		return cli.Usagef("--dead-timeout: at least 1s")
	}
	return nil
}

// isDescriptor reports whether a name means one of this process's own files, as
// the shell's <(command) does. In another process it is nothing, or another.
func isDescriptor(name string) bool {
	return strings.HasPrefix(name, "/dev/fd/") || strings.HasPrefix(name, "/proc/self/fd/") || name == "/dev/stdin"
}

// checkAlone refuses what would go unheard: a device that is attached has its
// server's flags, but for a few that are said anew.
func (f *flags) checkAlone() error {
	a := f.action()
	if a == "" {
		return nil
	}
	defaults := new(flags)
	if err := cli.Parse(new(cli.Env), defaults, description); err != nil {
		return err
	}
	if f.DeadTimeout != defaults.DeadTimeout {
		return cli.Usagef("%s goes without --dead-timeout: that is of what attaches a device", a)
	}
	given := *f
	given.attachFlags = defaults.attachFlags
	given.Username, given.AuthFile, given.PasswordStdin = "", "", false
	given.Verbose, given.Stats = false, false
	if !reflect.DeepEqual(&given, defaults) {
		return cli.Usagef("%s goes without flags for a server, except --username, --password-stdin, --authfile, --stats and --verbose: what is attached keeps its own", a)
	}
	return nil
}

// realDir is a directory's path without symbolic links, as the kernel has it in
// its list of mounts; one that cannot be followed stays as it is.
func realDir(dir string) string {
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		return real
	}
	return dir
}

// absolute makes all paths absolute, for a server in another directory.
func (f *flags) absolute() error {
	paths := []*string{&f.Image, &f.Index, &f.Zinfo, &f.Seek, &f.Tmpdir, &f.Mount, &f.StateDir,
		&f.CAFile, &f.CertFile, &f.KeyFile, &f.AuthFile, &f.Registries, &f.HostsDir, &f.CacheDir, &f.Record, &f.Recorded}
	for _, p := range paths {
		if *p == "" {
			continue
		}
		abs, err := filepath.Abs(*p)
		if err != nil {
			return err
		}
		*p = abs
	}
	if f.Mount != "" {
		f.Mount = realDir(f.Mount)
	}
	for i, name := range f.Blob {
		scheme, path := "", name
		if source.IsLocal(name) {
			scheme, path, _ = strings.Cut(name, ":")
			scheme += ":"
		} else if !isFile(name) {
			continue
		}
		abs, err := filepath.Abs(path) // a tag behind the path does no harm
		if err != nil {
			return err
		}
		f.Blob[i] = scheme + abs
	}
	return nil
}
