{{/* What the charts of a site and of a coordinator share; each has a link to this file. */}}

{{/* Kubernetes adds 11 signs to it in a label, of which it allows 63. */}}
{{- define "privet.name" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "privet.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "privet.labels" -}}
{{ include "privet.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: privet
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{/* Refusals in words: what is missing, and how it is made. */}}
{{- define "privet.check" -}}
{{- $v := .Values -}}
{{- if not $v.image.repository -}}
{{- fail "image.repository is empty: build the image from an install kit, push it to your own registry, and name it here. There is no public image" -}}
{{- end -}}
{{- if not $v.passphrase.existingSecret -}}
{{- fail "passphrase.existingSecret is empty: make a Secret and name it here, for one by: kubectl create secret generic privet-passphrase --from-file=passphrase=FILE" -}}
{{- end -}}
{{- $m := $v.metrics -}}
{{- if and $m.proxy.enabled (not $m.enabled) -}}
{{- fail "metrics.proxy.enabled needs metrics.enabled: there are no figures to pass on" -}}
{{- end -}}
{{- if and $m.proxy.enabled (not (and $m.proxy.image $m.proxy.existingSecret)) -}}
{{- fail "metrics.proxy needs an image (nginx that runs as any user) and existingSecret, a Secret with tls.crt, tls.key and ca.crt: without them anybody in the cluster could read the figures" -}}
{{- end -}}
{{- if and $m.proxy.enabled $m.proxy.runAsUser $v.runAs.user -}}
{{- if eq (int64 $m.proxy.runAsUser) (int64 $v.runAs.user) -}}
{{- fail "metrics.proxy.runAsUser is runAs.user: the proxy, which the network reaches, could look into Privet's processes. Give it another user" -}}
{{- end -}}
{{- end -}}
{{- if and $m.podMonitor.enabled (not $m.proxy.enabled) -}}
{{- fail "metrics.podMonitor.enabled needs metrics.proxy.enabled: Privet serves its figures inside the pod only" -}}
{{- end -}}
{{- if and $m.podMonitor.enabled (not $m.podMonitor.tlsConfig) -}}
{{- fail "metrics.podMonitor.tlsConfig is empty: the proxy asks Prometheus for a certificate; name the Secret that holds it (ca, cert, keySecret, serverName)" -}}
{{- end -}}
{{- end -}}

{{- define "privet.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{/* Settings of the pod that are no choice, and those of where it runs. */}}
{{- define "privet.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
# Process 1 of the pod ends what Privet's own processes leave behind, as compose's `init` does. Not
# beside a proxy that may be of the same user: it could read the passphrase by Privet's processes.
{{- $apart := and .Values.runAs.user .Values.metrics.proxy.runAsUser }}
shareProcessNamespace: {{ or (not .Values.metrics.proxy.enabled) (not (not $apart)) }}
terminationGracePeriodSeconds: {{ .Values.terminationGracePeriodSeconds }}
securityContext:
  runAsNonRoot: true
  {{- with .Values.runAs.user }}
  runAsUser: {{ int64 . }}
  {{- end }}
  {{- with .Values.runAs.group }}
  runAsGroup: {{ int64 . }}
  fsGroup: {{ int64 . }}
  {{- end }}
  # Not Always: it would open private keys to the group at each start, and Privet refuses those.
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "privet.containerSecurity" -}}
allowPrivilegeEscalation: false
privileged: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* In maintenance nothing of Privet runs: the pod waits, with the folder and the passphrase. */}}
{{- define "privet.wait" -}}
command:
  - python
  - -I
  - -c
  - "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit()); signal.pause()"
{{- end -}}

{{- define "privet.environment" -}}
- name: PRIVET_PASSPHRASE_FILE
  value: /run/secrets/privet/passphrase
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "privet.mounts" -}}
- name: state
  mountPath: /var/lib/privet
- name: passphrase
  mountPath: /run/secrets/privet
  readOnly: true
- name: tmp
  mountPath: /tmp
{{- end -}}

{{- define "privet.volumes" -}}
- name: passphrase
  secret:
    secretName: {{ .Values.passphrase.existingSecret | quote }}
    # For the pod's group; Privet refuses a passphrase that everybody can read.
    defaultMode: 0440
    items:
      - key: {{ .Values.passphrase.key | quote }}
        path: passphrase
- name: tmp
  emptyDir:
    medium: Memory
    sizeLimit: {{ .Values.tmpSize | quote }}
{{- with .Values.persistence.existingClaim }}
- name: state
  persistentVolumeClaim:
    claimName: {{ . | quote }}
{{- end }}
{{- if .Values.metrics.proxy.enabled }}
- name: metrics-config
  configMap:
    name: {{ include "privet.name" . }}-metrics
- name: metrics-keys
  secret:
    secretName: {{ .Values.metrics.proxy.existingSecret | quote }}
    defaultMode: 0440
- name: metrics-tmp
  emptyDir:
    medium: Memory
    sizeLimit: 16Mi
{{- end }}
{{- end -}}

{{- define "privet.claims" -}}
{{- if not .Values.persistence.existingClaim -}}
persistentVolumeClaimRetentionPolicy:
  whenDeleted: Retain
  whenScaled: Retain
volumeClaimTemplates:
  - metadata:
      name: state
      labels:
        {{- include "privet.selector" . | nindent 8 }}
    spec:
      accessModes: [{{ .Values.persistence.accessMode }}]
      {{- with .Values.persistence.storageClass }}
      storageClassName: {{ . | quote }}
      {{- end }}
      resources:
        requests:
          storage: {{ .Values.persistence.size | quote }}
{{- end -}}
{{- end -}}

{{/* Passes the figures on, to who shows a certificate; Privet serves them on loopback alone. */}}
{{- define "privet.metricsProxy" -}}
- name: metrics
  image: {{ .Values.metrics.proxy.image | quote }}
  command: [nginx, -e, stderr, -c, /etc/privet-metrics/nginx.conf, -g, daemon off;]
  securityContext:
    {{- with .Values.metrics.proxy.runAsUser }}
    # Another user than Privet's, so that it can look into none of Privet's processes.
    runAsUser: {{ int64 . }}
    {{- end }}
    {{- include "privet.containerSecurity" . | nindent 4 }}
  ports:
    - name: metrics
      containerPort: 9443
  resources:
    requests: {cpu: 10m, memory: 32Mi}
    limits: {memory: 64Mi}
  volumeMounts:
    - name: metrics-config
      mountPath: /etc/privet-metrics
      readOnly: true
    - name: metrics-keys
      mountPath: /run/secrets/metrics
      readOnly: true
    - name: metrics-tmp
      mountPath: /tmp
{{- end -}}

{{- define "privet.metricsIngress" -}}
{{- if .Values.metrics.proxy.enabled -}}
- from:
    {{- toYaml .Values.metrics.proxy.from | nindent 4 }}
  ports:
    - {protocol: TCP, port: 9443}
{{- end -}}
{{- end -}}

{{/* Peers of a network policy, from a list of address ranges; none is everybody. */}}
{{- define "privet.ranges" -}}
{{- range . }}
- ipBlock: {cidr: {{ . | quote }}}
{{- end }}
{{- end -}}
