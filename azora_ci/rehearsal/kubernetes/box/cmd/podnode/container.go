package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	core "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// command returns the container's command, whose first word is the image's executable. It fails with the image, or with a value.
func (r *runner) command() (*exec.Cmd, error) {
	if len(r.pod.Spec.Containers) > 1 {
		return nil, fmt.Errorf("podnode runs pods of one container only")
	}
	container := r.pod.Spec.Containers[0]
	found, err := r.node.images.find(container.Image)
	if err != nil {
		return nil, err
	}
	words, folder := append(append(found.command, container.Command...), container.Args...), r.node.logs
	if found.root != "" {
		folder = found.folder
		if len(container.Command) > 0 {
			words = append(append([]string{}, container.Command...), container.Args...)
		} else if len(container.Args) > 0 {
			return nil, fmt.Errorf("podnode knows no args without a command")
		}
		if err := r.mount(found.root); err != nil {
			return nil, err
		}
	}
	environment := append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + folder}, found.env...)
	// A container of a real node listens on every address of its own network; here the network is shared, and HOST says which is the pod's.
	environment = append(environment, "HOSTNAME="+r.pod.Name, "POD_IP="+r.address, "HOST="+r.address)
	for _, variable := range container.Env {
		value, err := r.value(variable)
		if err != nil {
			return nil, err
		}
		environment = append(environment, variable.Name+"="+value)
	}
	program, err := lookUp(found.root, words[0], environment)
	if err != nil {
		return nil, err
	}
	command := &exec.Cmd{Path: program, Args: words, Env: environment, Dir: folder}
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: killSignal, Chroot: found.root}
	return command, nil
}

// lookUp returns the path of a program inside a root file system, as execvp finds it by the last PATH.
func lookUp(root, name string, environment []string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	path := ""
	for _, variable := range environment {
		if value, found := strings.CutPrefix(variable, "PATH="); found {
			path = value
		}
	}
	for _, folder := range filepath.SplitList(path) {
		if info, err := os.Stat(filepath.Join(root, folder, name)); err == nil && info.Mode()&0o111 != 0 {
			return filepath.Join(folder, name), nil
		}
	}
	return "", fmt.Errorf("no program %s in %s", name, path)
}

// mount shows the pod's hostPath volumes in its image's root file system, which all pods of the image share.
func (r *runner) mount(root string) error {
	sources := map[string]string{}
	for _, volume := range r.pod.Spec.Volumes {
		if volume.HostPath != nil {
			sources[volume.Name] = volume.HostPath.Path
		}
	}
	for _, place := range r.pod.Spec.Containers[0].VolumeMounts {
		if source, found := sources[place.Name]; found {
			target := filepath.Join(root, place.MountPath)
			if err := os.MkdirAll(target, 0o755); err != nil {
				return err
			}
			if isMounted(target) {
				continue
			}
			if err := syscall.Mount(source, target, "", syscall.MS_BIND, ""); err != nil {
				return fmt.Errorf("volume %s: %w", place.Name, err)
			}
		}
	}
	return nil
}

// isMounted says whether something is mounted at a folder.
func isMounted(folder string) bool {
	content, err := os.ReadFile("/proc/self/mountinfo")
	return err == nil && strings.Contains(string(content), " "+folder+" ")
}

// value returns what a variable of the container is: given, a field of the pod, or from a Secret or ConfigMap.
func (r *runner) value(variable core.EnvVar) (string, error) {
	source := variable.ValueFrom
	switch {
	case source == nil:
		return variable.Value, nil
	case source.FieldRef != nil:
		fields := map[string]string{"metadata.name": r.pod.Name, "metadata.namespace": r.pod.Namespace, "status.podIP": r.address, "spec.nodeName": r.node.name}
		for key, value := range r.pod.Labels {
			fields["metadata.labels['"+key+"']"] = value
		}
		return fields[source.FieldRef.FieldPath], nil
	case source.SecretKeyRef != nil:
		secret, err := r.node.client.CoreV1().Secrets(r.pod.Namespace).Get(context.Background(), source.SecretKeyRef.Name, metav1.GetOptions{})
		if err != nil {
			return "", err
		}
		return string(secret.Data[source.SecretKeyRef.Key]), nil
	case source.ConfigMapKeyRef != nil:
		settings, err := r.node.client.CoreV1().ConfigMaps(r.pod.Namespace).Get(context.Background(), source.ConfigMapKeyRef.Name, metav1.GetOptions{})
		if err != nil {
			return "", err
		}
		return settings.Data[source.ConfigMapKeyRef.Key], nil
	}
	return "", fmt.Errorf("podnode does not know where %s comes from", variable.Name)
}
