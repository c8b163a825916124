package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
)

const manifests = "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json"

// image is what a container runs: an executable of this machine, or a program in a root file system of its own.
type image struct {
	root    string // empty for an executable
	command []string
	env     []string
	folder  string
}

// store finds images by digest: executables in sha256/HEX; images of a registry, once pulled, in unpacked/HEX.
type store struct {
	folder string
	pull   sync.Mutex
}

// find returns an image. An error that is fs.ErrNotExist says that it cannot be pulled.
func (s *store) find(reference string) (image, error) {
	repository, digest, found := strings.Cut(reference, "@sha256:")
	if !found || len(digest) != 64 || strings.ContainsAny(digest, "/.") {
		return image{}, fmt.Errorf("image %s has no digest: %w", reference, fs.ErrNotExist)
	}
	executable := filepath.Join(s.folder, "sha256", digest)
	if _, err := os.Stat(executable); err == nil {
		return image{command: []string{executable}}, nil
	}
	s.pull.Lock()
	defer s.pull.Unlock()
	unpacked := filepath.Join(s.folder, "unpacked", digest)
	if _, err := os.Stat(unpacked); err != nil {
		if err := fetch(repository, digest, unpacked); err != nil {
			return image{}, fmt.Errorf("image %s: %v: %w", reference, err, fs.ErrNotExist)
		}
	}
	return read(unpacked)
}

// fetch pulls an image of a registry on loopback, which speaks plain HTTP, and unpacks its layers.
func fetch(repository, digest, unpacked string) error {
	host, name, found := strings.Cut(repository, "/")
	if !found || !strings.HasPrefix(host, "127.") {
		return fmt.Errorf("no registry of this machine")
	}
	base := fmt.Sprintf("http://%s/v2/%s", host, name)
	part, err := os.MkdirTemp(filepath.Dir(filepath.Dir(unpacked)), "pull-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(part)
	var manifest struct {
		Config struct{ Digest string }
		Layers []struct{ Digest string }
	}
	path := filepath.Join(part, "manifest.json")
	if err := download(base+"/manifests/sha256:"+digest, digest, path); err != nil {
		return err
	}
	if err := readJSON(path, &manifest); err != nil {
		return err
	}
	blob := func(digest, path string) error {
		return download(base+"/blobs/"+digest, strings.TrimPrefix(digest, "sha256:"), path)
	}
	if err := blob(manifest.Config.Digest, filepath.Join(part, "config.json")); err != nil {
		return err
	}
	root := filepath.Join(part, "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		return err
	}
	for _, layer := range manifest.Layers { // whiteouts are not followed: layers of these images only add
		path := filepath.Join(part, "layer")
		if err := blob(layer.Digest, path); err != nil {
			return err
		}
		if output, err := exec.Command("tar", "--extract", "--file", path, "--directory", root).CombinedOutput(); err != nil {
			return fmt.Errorf("tar: %v: %s", err, output)
		}
	}
	_ = os.MkdirAll(filepath.Dir(unpacked), 0o755)
	_ = os.Chmod(part, 0o755)
	if err := os.Rename(part, unpacked); err != nil && !os.IsExist(err) { // another node was quicker
		return err
	}
	return nil
}

// download writes a file and checks its digest.
func download(url, digest, path string) error {
	request, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	request.Header.Set("Accept", manifests)
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, answer.Status)
	}
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	defer file.Close()
	sum := sha256.New()
	if _, err := io.Copy(io.MultiWriter(file, sum), answer.Body); err != nil {
		return err
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != digest {
		return fmt.Errorf("%s has the digest sha256:%s", url, got)
	}
	return nil
}

// read returns an unpacked image as its configuration says.
func read(unpacked string) (image, error) {
	var document struct {
		Config struct {
			Env, Entrypoint, Cmd []string
			WorkingDir           string
		} `json:"config"`
	}
	if err := readJSON(filepath.Join(unpacked, "config.json"), &document); err != nil {
		return image{}, err
	}
	config := document.Config
	folder := config.WorkingDir
	if folder == "" {
		folder = "/"
	}
	command := append(append([]string{}, config.Entrypoint...), config.Cmd...)
	if len(command) == 0 {
		return image{}, fmt.Errorf("image has no command")
	}
	return image{root: filepath.Join(unpacked, "root"), command: command, env: config.Env, folder: folder}, nil
}

func readJSON(path string, into any) error {
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return json.Unmarshal(content, into)
}
