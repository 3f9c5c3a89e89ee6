// Package regflags is the flags of the commands that read images where they
// lie: which platform, and how a registry is spoken to.
package regflags

import (
	"fmt"
	"io"
	"os"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/layerpipe/layerpipe/cmd/internal/cli"
	"github.com/layerpipe/layerpipe/pkg/ociimage"
	"github.com/layerpipe/layerpipe/pkg/source"
)

// Flags is to be embedded in a command's flags.
type Flags struct {
	Platform      string   `placeholder:"OS/ARCH" help:"Which image of several, like linux/arm64/v8 or windows/amd64:10.0.17763 (default: linux on this machine's architecture)."`
	PlainHTTP     bool     `name:"plain-http" help:"Speak HTTP to the registry, not HTTPS."`
	Insecure      bool     `help:"Take any certificate of the registry's."`
	CAFile        string   `name:"ca-file" placeholder:"FILE" help:"Certificates to trust besides the system's."`
	CertFile      string   `placeholder:"FILE" help:"Client certificate."`
	KeyFile       string   `placeholder:"FILE" help:"Its key."`
	AuthFile      string   `name:"authfile" aliases:"registry-config" placeholder:"FILE" help:"Credentials: docker's config.json or podman's auth.json (default: $$DOCKER_AUTH_CONFIG's, then where those are)."`
	Registries    string   `name:"registries-conf" placeholder:"FILE" help:"Mirrors, blocks and aliases: podman's registries.conf (default: where it is)."`
	HostsDir      string   `placeholder:"DIR" help:"Mirrors: containerd's certs.d, of HOST/hosts.toml (default: where it is)."`
	CacheDir      string   `placeholder:"DIR" help:"Keep blobs in DIR, and take them from there. Any number of processes may share it."`
	CacheDirSize  cli.Size `default:"16GiB" placeholder:"BYTES" help:"Most that --cache-dir keeps; 0 is no limit (default ${default})."`
	TokenServer   []string `placeholder:"HOST" help:"A host that may give out tokens although its address is internal and the registry's is not."`
	Username      string   `short:"u" placeholder:"NAME" help:"Name at the registry; the password comes from --password-stdin or $LAYERPIPE_PASSWORD."`
	PasswordStdin bool     `help:"Read the password from stdin."`
}

// PasswordVariable is the environment's way to give a password. There is no
// flag for one: everybody can see a process's arguments.
const PasswordVariable = "LAYERPIPE_PASSWORD"

// maxPassword bounds what is read from stdin; tokens can be long.
const maxPassword = 64 << 10

// ReadPassword reads a password, for --password-stdin.
func ReadPassword(stdin io.Reader) (string, error) {
	b, err := io.ReadAll(io.LimitReader(stdin, maxPassword+1))
	if err != nil {
		return "", fmt.Errorf("password from stdin: %w", err)
	}
	if len(b) > maxPassword {
		return "", cli.Usagef("password from stdin: over %d bytes", maxPassword)
	}
	return strings.TrimRight(string(b), "\r\n"), nil
}

// Options are the options for source.Open.
func (f *Flags) Options(env *cli.Env) (source.Options, error) {
	o := source.Options{
		PlainHTTP:    f.PlainHTTP,
		Insecure:     f.Insecure,
		CAFile:       f.CAFile,
		CertFile:     f.CertFile,
		KeyFile:      f.KeyFile,
		AuthFile:     f.AuthFile,
		Username:     f.Username,
		TokenServers: f.TokenServer,

		RegistriesConf: f.Registries,
		HostsDir:       f.HostsDir,

		UserAgent: strings.ReplaceAll(cli.Version(), " ", "/"),
	}
	switch {
	case (f.CertFile == "") != (f.KeyFile == ""):
		return o, cli.Usagef("--cert-file and --key-file belong together")
	case f.PlainHTTP && (f.Insecure || f.CAFile != "" || f.CertFile != ""):
		return o, cli.Usagef("--plain-http has no certificates: drop --insecure, --ca-file, --cert-file")
	case f.PasswordStdin && f.Username == "":
		return o, cli.Usagef("--password-stdin needs --username")
	case f.PasswordStdin:
		var err error
		if o.Password, err = ReadPassword(env.Stdin); err != nil {
			return o, err
		}
	case f.Username != "":
		p, ok := os.LookupEnv(PasswordVariable)
		if !ok {
			return o, cli.Usagef("--username needs --password-stdin or $%s", PasswordVariable)
		}
		o.Password = p
	}
	return o, nil
}

// Open opens an image where it lies; what a registry has, through the cache if
// there is one.
func (f *Flags) Open(ref string, o source.Options) (source.Source, error) {
	s, err := source.Open(ref, o)
	if err != nil || f.CacheDir == "" || source.IsLocal(ref) {
		return s, err
	}
	c, err := source.Cache{Dir: f.CacheDir, Limit: int64(f.CacheDirSize), Notify: o.Notify}.Wrap(s)
	if err != nil {
		s.Close()
		return nil, err
	}
	return c, nil
}

// Target is the platform that was asked for; nil: none was.
func (f *Flags) Target() (*ocispec.Platform, error) {
	if f.Platform == "" {
		return nil, nil
	}
	p, err := ociimage.ParsePlatform(f.Platform)
	if err != nil {
		return nil, cli.Usagef("--platform: %v", err)
	}
	return p, nil
}
